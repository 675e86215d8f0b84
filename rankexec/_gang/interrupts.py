"""Ctrl-C while the main thread is a rank."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rankexec._gang.breaking import Breakable
from rankexec._gang.deferred import Holding
from rankexec._gang.handlers import get_handler, is_common, set_handler

__all__ = ("Interrupts",)


class Interrupts(Holding):
    """SIGINT while a gang of the main thread runs: it ends the gang at once, even in C code.

    Python runs a signal's handler only between bytecodes, so a thread in a gloo collective would
    not see it. The wakeup descriptor is written to by C: the supervising thread reads it and ends
    the peers; the collective fails, and the handler raises KeyboardInterrupt.

    Stands only in the main thread, and only in place of the handlers of Python, asyncio (which
    merely cancels a task) and IPython: a user's own handler stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reader: socket.socket | None = None
        """Readable when a signal has come; None if the handler does not stand."""
        self.came = False
        """Whether SIGINT has come, raised meanwhile or not."""
        self.rank: Breakable | None = None
        """Whose code it is raised in."""
        self._heard = 0
        self._previous_fd = -1

    @contextmanager
    def standing(self) -> Iterator[None]:
        here = threading.current_thread() is threading.main_thread()
        if not here or not is_common(get_handler(signal.SIGINT)):
            yield
            return
        reader, writer = socket.socketpair()
        with reader, writer:
            for end in (reader, writer):
                end.setblocking(False)
            self.reader = reader
            previous = set_handler(signal.SIGINT, self.note)
            self._previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self.take_from(previous)
            try:
                yield
            finally:
                signal.set_wakeup_fd(self._previous_fd)
                set_handler(signal.SIGINT, previous)

    def arrived(self) -> bool:
        """Read what woke us; pass other signals on to whoever listened before. True for SIGINT."""
        try:
            numbers = self.reader.recv(4096) if self.reader is not None else b""
        except BlockingIOError:
            return False
        ours = bytes([signal.SIGINT])
        self._heard += numbers.count(ours)
        if self._heard > 1 and self.rank is not None:
            self.rank.insist()
        others = numbers.replace(ours, b"")
        if others and self._previous_fd >= 0:
            with contextlib.suppress(OSError):  # its reader is behind; it has been woken
                _write(self._previous_fd, others)
        return ours in numbers

    def note(self, _number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
        __tracebackhide__ = True
        self.came = True
        super().note()

    def check(self) -> None:
        __tracebackhide__ = True
        if self.pending and self.rank is not None:
            self.rank.told()
        super().check()

    def raise_if_came(self) -> None:
        """Raise KeyboardInterrupt if one has come: what it has broken off may have swallowed it."""
        if self.came:
            raise KeyboardInterrupt


def _write(wakeup_fd: int, numbers: bytes) -> None:
    if sys.platform != "win32":
        os.write(wakeup_fd, numbers)
        return
    own = socket.socket(fileno=wakeup_fd)  # there, it is no file
    try:
        own.send(numbers)
    finally:
        own.detach()
