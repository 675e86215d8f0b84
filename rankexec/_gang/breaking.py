"""A thread that runs the user's code as a rank, and how it is broken off.

`break_out`, `cut_off`, `break_off` and `stack` are another thread's, all else is the thread's own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from rankexec._gang.call import Seat
from rankexec._gang.handlers import get_handler, set_handler
from rankexec._gang.output import warn
from rankexec._gang.peers import hang_up
from rankexec._gang.sockets import Spared, cut, inet_sockets

__all__ = ("BREAK_SECONDS", "CUT_OFF_AFTER_SECONDS", "Breakable", "GangEnded")

BREAK_SECONDS = 0.2
"""How long to wait for a rank to break off before the next means."""
GRACE_SECONDS = 5.0
"""How long the user's `except` and `finally` may take, when they have been told, before they are
broken off as well: a function may catch the first one and go on."""
GRACE_IN_SESSION_SECONDS = 1.0
"""The same in a session, whose ranks are ended when they have not left in twice that time."""
CUT_OFF_AFTER_SECONDS = 0.05
"""How long before its sockets are shut: in the first milliseconds a store's client would take a
connection that is shut for a server that is not there yet, and wait before it tries again."""


class GangEnded(BaseException):
    """Raised inside `fn` on a rank whose call is over and whose process lives. Let it pass."""


class Breakable:
    """A thread while it is a rank. As a context manager it spans what may be broken off.

    Args:
        seat: the rank's.
        spared: of a session, which sockets none of its calls has opened; None: this is the only
            call.
    """

    def __init__(self, seat: Seat, spared: Spared | None = None) -> None:
        self.number = seat.rank
        self._size = seat.world_size
        self._thread = 0
        self._lock = threading.Lock()
        self._inside = False
        self._broken = False
        self._spared = Spared(between=True) if spared is None else spared
        self._in_session = spared is not None
        self._break_signal: int | None = None
        self._abort: Callable[[], None] | None = None
        self._grace = GRACE_IN_SESSION_SECONDS if self._in_session else GRACE_SECONDS
        self._told_at = 0.0

    @contextmanager
    def standing(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Be ready to be broken off: from here on in this thread."""
        self._thread = threading.get_ident()
        self._abort = getattr(context, "caller_abort", None)
        self._spared.begins()
        with self._break_handler(), _unnoticed():
            try:
                yield
            finally:
                if self._in_session:
                    self._spared.ends()

    def __enter__(self) -> None:
        with self._lock:
            self._inside = True
        if self._broken:
            raise GangEnded

    def __exit__(self, *_exc_info: object) -> None:
        __tracebackhide__ = True
        while True:
            try:
                with self._lock:
                    self._inside = False
                    if self._break_signal is None:
                        _set_async_exc(self._thread, None)
            except GangEnded:  # it was on its way; another cannot follow
                continue
            return

    def break_out(self) -> None:
        """Raise in the rank if it is inside `fn`. Ends Python code; to be repeated.

        One raised in a `__del__` is lost, and a bare `except` swallows one.
        """
        with self._lock:
            self._broken = True
            if not self._inside or self.cleans_up():
                return
            if self._break_signal is not None:
                signal.pthread_kill(self._thread, self._break_signal)
            else:  # another thread; or the user has taken every signal that would do
                self.told()  # soon; nobody can know when
                _set_async_exc(self._thread, GangEnded)

    def told(self) -> None:
        """Note that the end of the call is raised in the user's code."""
        self._told_at = self._told_at or time.monotonic()

    def cleans_up(self) -> bool:
        """Return whether the user's code is at its `except` or `finally`, and has time left.

        What torch has swallowed, or a `__del__`, is to be raised again at once.
        """
        return time.monotonic() - self._told_at < self._grace and _handles_the_end(self._thread)

    def insist(self) -> None:
        """Give it no more time: the user asks for the second time."""
        self._grace = 0.0

    def cut_off(self) -> None:
        """Have the context abort, and end what this rank's sockets are connected to, or wait for.

        That frees it from a rendezvous, or from a peer that has gone silent.
        """
        self._cut_sockets()
        abort, self._abort = self._abort, None
        if abort is None:
            return
        try:
            abort()
        except Exception as error:  # the context's own code; the rank must be freed nevertheless
            warn(f"the context of rank {self.number}, which was to abort, raised {error!r}")
        else:
            self._abort = abort  # it has not failed: once more, if need be

    def break_off(self, left: Callable[[float], bool]) -> None:
        """Go on after `break_out`, by both means, until the rank has left.

        Args:
            left: waits so many seconds; returns whether it has left, or need not any more.
        """
        pause = CUT_OFF_AFTER_SECONDS
        while not left(pause):
            pause = BREAK_SECONDS
            self.cut_off()
            self.break_out()

    def _cut_sockets(self) -> None:
        """Cut what is connected; to what listens, be a peer that dies.

        To shut what listens would abort the process (gloo). What was there before is spared, and
        so is what came in through it, such as a Jupyter kernel's connections.
        """
        found = inet_sockets()
        spared = self._spared.inodes
        ports = {one.port for inode, one in found.items() if one.listens and inode in spared}
        own = [one for inode, one in found.items() if not (inode in spared or one.port in ports)]
        for one in own:
            if not one.listens:
                cut(one)
        hang_up([one for one in own if one.listens], self._group_size())

    def _group_size(self) -> int:
        """Return how many ranks a group may have: a gang can be one host's part of it."""
        given = os.environ.get("WORLD_SIZE", "")
        return max(self._size, int(given)) if given.isdecimal() else self._size

    def stack(self) -> str:
        """Return the Python stack of the thread."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame else ""

    @contextmanager
    def _break_handler(self) -> Iterator[None]:
        """Have a signal that breaks off blocking calls of the main thread (sleep, locks, reads)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        free = (n for n in _BREAK_SIGNALS if get_handler(n) in (signal.SIG_DFL, signal.SIG_IGN))
        number = next(free, None)
        if number is None:
            yield
            return
        previous = set_handler(number, self._on_break)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        self._break_signal = number
        try:
            yield
        finally:
            self._break_signal = None
            if number in blocked:
                signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            set_handler(number, previous)

    def _on_break(self, _number: int, _frame: FrameType | None) -> None:
        if self._inside and not self.cleans_up():  # it may arrive late
            self.told()
            raise GangEnded


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Say nothing where `GangEnded` was raised in a `__del__` and lost: it comes again."""
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not GangEnded:
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


# SIGURG does nothing by default and hardly anybody uses it.
_BREAK_SIGNALS = [
    getattr(signal, name) for name in ("SIGURG", "SIGUSR2", "SIGUSR1") if hasattr(signal, name)
]


def _handles_the_end(thread: int) -> bool:
    """Return whether a thread handles what has ended its call, or what came of that."""
    found: Any = sys._current_exceptions().get(thread)
    error = found[1] if isinstance(found, tuple) else found  # before Python 3.12
    for _ in range(_CHAIN):
        if isinstance(error, (GangEnded, KeyboardInterrupt)):
            return True
        error = getattr(error, "__context__", None)
    return False


_CHAIN = 100
"""Exceptions that are looked at: each came while the one before was handled. It may be a circle."""


def _set_async_exc(thread: int, exception: type[BaseException] | None) -> None:
    what = ctypes.py_object(exception) if exception else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
