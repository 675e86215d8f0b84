"""The supervising thread's loop: descriptors to watch, and calls from other threads."""

from __future__ import annotations

import queue
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rankexec._gang.sockets import NO_SIGNAL, quiet

__all__ = ("LONGEST_SECONDS", "Loop")

Callback = Callable[[], None]
LONGEST_SECONDS = 86400.0
"""The kernel takes no more than 24 days at once, and not infinity; who waits looks again anyway."""


class Loop:
    """Calls back what is readable. `tell` is for every thread, the rest for its own."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Callback] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        try:
            self._awake, self._waker = socket.socketpair()
        except OSError:
            self._selector.close()
            raise
        for end in (self._awake, self._waker):
            quiet(end).setblocking(False)
        self.watch(self._awake, self._on_wake)

    def tell(self, callback: Callback) -> None:
        """Have the loop call `callback`; returns at once. After `close` nothing happens."""
        self._told.put(callback)
        with suppress(OSError):  # full: it is awake anyway; closed: it is over
            self._waker.send(b".", NO_SIGNAL)

    def watch(self, what: Any, callback: Callback) -> None:
        """Call back whenever `what` (a descriptor, or something with one) is readable."""
        self._selector.register(what, selectors.EVENT_READ, callback)

    def ignore(self, what: Any) -> None:
        """Watch it no longer; it may be unknown."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(what)

    def watches(self, what: Any) -> bool:
        """Return whether it is watched."""
        return what in self._selector.get_map()

    def handle(self, limit: float | None) -> None:
        """Wait for something to happen, at most until `limit` (monotonic), and handle it."""
        wait = None if limit is None else min(max(0.0, limit - time.monotonic()), LONGEST_SECONDS)
        for key, _ in self._selector.select(wait):
            if self.watches(key.fileobj):  # an earlier one of this round may have ended that
                key.data()

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Handle what happens until `until`, at most until `limit`. Returns whether it came."""
        while not until():
            if time.monotonic() >= limit:
                return False
            self.handle(limit)
        return True

    def close(self) -> None:
        """Close what the loop itself holds."""
        self._selector.close()
        self._awake.close()
        self._waker.close()

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            self._awake.recv(4096)
        with suppress(queue.Empty):
            while True:
                self._told.get_nowait()()
