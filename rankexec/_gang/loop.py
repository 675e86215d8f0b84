"""The supervising thread's loop: descriptors to watch, and calls from other threads."""

from __future__ import annotations

import queue
import select
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
        self._urgent: set[Any] = set()
        self.watch(self._awake, self._on_wake, urgent=True)

    def tell(self, callback: Callback) -> None:
        """Have the loop call `callback`; returns at once. After `close` nothing happens."""
        self._told.put(callback)
        with suppress(OSError):  # full: it is awake anyway; closed: it is over
            self._waker.send(b".", NO_SIGNAL)

    def watch(self, what: Any, callback: Callback, *, urgent: bool = False) -> None:
        """Call back whenever `what` (a descriptor, or something with one) is readable.

        What is `urgent` is also heard while something is written.
        """
        self._selector.register(what, selectors.EVENT_READ, callback)
        if urgent:
            self._urgent.add(what)

    def ignore(self, what: Any) -> None:
        """Watch it no longer; it may be unknown."""
        self._urgent.discard(what)
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

    def takes(self, descriptor: int, limit: float) -> bool:
        """Wait until a descriptor can be written to, and handle only what is urgent meanwhile.

        Returns whether it can, at the latest at the limit, or when something urgent has come.
        """
        poll, callbacks = select.poll(), {}
        poll.register(descriptor, select.POLLOUT)
        for what in self._urgent:
            key = self._selector.get_key(what)
            callbacks[key.fd] = key.data
            poll.register(key.fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(0.0, limit - time.monotonic()) * 1000)]
        for fd in ready:
            if fd in callbacks:
                callbacks[fd]()
        return descriptor in ready

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
