"""Ctrl-C held back: while the main thread must not be torn apart, and while it waits for gangs.

A KeyboardInterrupt of Python's own handler may come between any two instructions: when a thread is
started and nobody knows it yet, when a lock is taken and no `with` has seen it (`Condition`, and so
`Event` and `Future`, take theirs in Python code). What then waits for these waits for ever.
"""

from __future__ import annotations

import concurrent.futures
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from rankexec._gang.handlers import get_handler, is_common, set_handler

__all__ = ("Deferred", "Holding", "Interruptible", "Latch", "finish")

LOOK_SECONDS = 0.05
"""How often the main thread looks for an interrupt while it waits for a lock."""
END_SECONDS = 15.0
"""How long what was ended may take to be over, before one more Ctrl-C breaks off the wait for it;
longer than a killed rank of gigabytes takes."""


class Holding:
    """What stands in place of SIGINT's handler and notes what comes, but for where it may raise.

    Attributes:
        pending: whether one has come that has not been raised.
    """

    def __init__(self) -> None:
        self.pending = False
        self._raising = False

    def note(self, _number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
        """Take it that SIGINT has come: this is the handler."""
        __tracebackhide__ = True
        self.pending = True
        if self._raising:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if one is pending."""
        __tracebackhide__ = True
        if self.pending:
            self._raising = self.pending = False  # once: what follows is the clean-up
            raise KeyboardInterrupt

    def allow(self) -> None:
        """From here on raise KeyboardInterrupt anywhere, once."""
        __tracebackhide__ = True
        self._raising = True
        self.check()

    def defer(self) -> None:
        """From here on only note."""
        self._raising = False

    def take_from(self, handler: Any) -> None:
        """Take what is pending at the handler that this one replaces, if it is of this kind.

        Else what waits here would not hear of it.
        """
        outer = getattr(handler, "__self__", None)
        if isinstance(outer, Holding) and outer.pending:
            outer.pending = False
            self.note()


class Deferred(Holding):
    """Spans what SIGINT must not tear apart.

    In the main thread, and in place of the handlers that `Interrupts` replaces too: inside, a
    KeyboardInterrupt comes out of `wait`, `acquire` and what is `Interruptible` only; what has come
    by the end is handed to the handler that stood before. In other threads, and with a handler of
    the user's, it does nothing: `wait` and `acquire` simply wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous: Any = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # a handler may put, at any time

    def __enter__(self) -> Deferred:  # noqa: PYI034  # Self is of 3.11
        if threading.current_thread() is threading.main_thread():
            handler = get_handler(signal.SIGINT)
            if is_common(handler):
                self._previous = handler  # before: what comes after the next line is noted
                set_handler(signal.SIGINT, self.note)
                self.take_from(handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        if self._previous is None:
            return
        set_handler(signal.SIGINT, self._previous)
        if self.pending and not (kind is not None and issubclass(kind, KeyboardInterrupt)):
            signal.raise_signal(signal.SIGINT)

    def wait(
        self, futures: Iterable[Future[Any]], timeout: float | None = None, *, heed: bool = True
    ) -> bool:
        """Wait until all futures are done. Returns whether they are.

        Args:
            futures: of gangs, or of what threads of ours do; nobody cancels the latter.
            timeout: seconds; None: no limit.
            heed: raise KeyboardInterrupt when SIGINT comes; else it is noted.
        """
        __tracebackhide__ = True
        if self._previous is None:
            return not concurrent.futures.wait(futures, timeout).not_done
        end = None if timeout is None else time.monotonic() + timeout
        return all(self._wait_for(future, end, heed=heed) for future in futures)

    def _wait_for(self, future: Future[Any], end: float | None, *, heed: bool) -> bool:
        __tracebackhide__ = True
        with _told(future, self._bell):
            while not future.done():
                if heed:
                    self.check()
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                try:
                    self._bell.get(timeout=left)
                except queue.Empty:
                    return future.done()
        return True

    def acquire(self, lock: threading.Lock, timeout: float = math.inf) -> bool:
        """Take a lock that another thread may have for long. Returns whether it came in time."""
        __tracebackhide__ = True
        end = time.monotonic() + timeout
        longest = threading.TIMEOUT_MAX if self._previous is None else LOOK_SECONDS
        while not lock.acquire(timeout=max(0.0, min(longest, end - time.monotonic()))):
            self.check()
            if time.monotonic() >= end:
                return False
        return True

    @contextmanager
    def locked(self, lock: threading.Lock) -> Iterator[None]:
        """Hold such a lock."""
        __tracebackhide__ = True
        self.acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def note(self, _number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
        __tracebackhide__ = True
        super().note()
        self._bell.put(None)


class Interruptible:
    """Spans code of the user's where SIGINT is held back: there a KeyboardInterrupt may come.

    No generator: `contextlib` sets attributes of what comes through one, and the user's exception
    may refuse that.
    """

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        owner = getattr(get_handler(signal.SIGINT), "__self__", None) if main else None
        self._holding = owner if isinstance(owner, Holding) else None

    def __enter__(self) -> None:
        __tracebackhide__ = True
        if self._holding is not None:
            self._holding.allow()

    def __exit__(self, *_exc_info: object) -> None:
        if self._holding is not None:
            self._holding.defer()


def finish(
    futures: Iterable[Future[Any]], end: Callable[[], object], timeout: float | None = None
) -> None:
    """Wait until all futures are done. On Ctrl-C call `end`, wait for what that does, and raise."""
    __tracebackhide__ = True
    futures = list(futures)
    with Deferred() as deferred:
        try:
            deferred.wait(futures, timeout)
        except KeyboardInterrupt:
            end()
            if not deferred.wait(futures, END_SECONDS, heed=False):
                deferred.wait(futures)
            raise


class Latch(Future[None]):
    """What happens once, and is waited for; an Event whose wait Ctrl-C may break off anywhere."""

    def set(self) -> None:
        """Say that it has happened; once more does nothing."""
        with suppress(InvalidStateError):
            self.set_result(None)

    def wait(self, *, heed: bool = True) -> None:
        """Wait until it has; to `heed` SIGINT is to raise KeyboardInterrupt."""
        __tracebackhide__ = True
        with Deferred() as deferred:
            deferred.wait([self], heed=heed)


class _Waiter:
    """What a Future tells that it is done; the standard library's `wait` has such, too."""

    def __init__(self, bell: queue.SimpleQueue[None]) -> None:
        self._bell = bell

    def _ring(self, _future: Future[Any]) -> None:
        self._bell.put(None)

    add_result = add_exception = add_cancelled = _ring


@contextmanager
def _told(future: Future[Any], bell: queue.SimpleQueue[None]) -> Iterator[None]:
    """Ring when the future is done."""
    waiter = _Waiter(bell)
    with future._condition:
        future._waiters.append(waiter)  # type: ignore[arg-type]  # it has the methods
    try:
        yield
    finally:
        with future._condition:
            future._waiters.remove(waiter)  # type: ignore[arg-type]  # see above
