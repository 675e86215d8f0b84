"""The future of a gang: a standard Future whose running gang can be cancelled."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from rankexec._gang.call import RankInfo
from rankexec._gang.deferred import Deferred, finish

__all__ = ("RankedFuture", "submitting")

T = TypeVar("T")


class Endable(Protocol):
    """A gang, as its future sees it. Everything here returns at once, in any thread."""

    def end(self, why: BaseException) -> None:
        """End it by force, whatever its ranks do."""

    def stop(self, *, kill: bool) -> None:
        """End its ranks' processes; it fails of their deaths."""


class _Condition(threading.Condition):
    """One whose lock no Ctrl-C leaves locked: a `with` takes it in C, not in a method of Python's.

    The gang's end would wait for it for ever.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class RankedFuture(Future[T]):
    """The result of one gang.

    Attributes:
        ranks: by rank, pid, host, device, exit code, peak memory in bytes and the times of the
            phases; there from the beginning, and filled in as they become known. Pid, start and
            ready while the gang runs; the times of context and function with the rank's outcome;
            exit code and peak memory when it is reaped, shortly after the future is done
            (`shutdown()` waits for that).
    """

    def __init__(self, world_size: int = 0) -> None:
        super().__init__()
        self._condition = _Condition()
        self.ranks = [RankInfo(rank) for rank in range(world_size)]
        self._gang: Endable | None = None

    def cancel(self) -> bool:
        """Cancel the gang, also one that runs: its ranks are ended. Never blocks.

        Returns:
            False if it is finished already, else True.
        """
        return self._cancel(even_running=True)

    def result(self, timeout: float | None = None) -> T:
        """Return what the gang resolved to, or raise what it failed of; as the standard Future's.

        That one takes an exception that is false (its length is 0) for none.

        Raises:
            KeyboardInterrupt: Ctrl-C while the main thread waits here; the gang is cancelled.
        """
        __tracebackhide__ = True
        error = self.exception(timeout)
        if error is not None and not bool(error):
            raise error
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the gang failed of, or None; as the standard Future's.

        Raises:
            KeyboardInterrupt: Ctrl-C while the main thread waits here; the gang is cancelled.
        """
        __tracebackhide__ = True
        if not self.done():
            try:
                finish([self], self.cancel, timeout)
            except KeyboardInterrupt:  # or it came before there was a wait to break off
                self.cancel()
                raise
        return super().exception(0)

    def set_running_or_notify_cancel(self) -> bool:
        """Claim the future for its gang. Returns False if it was cancelled."""
        with self._condition:
            if self._state == CANCELLED_AND_NOTIFIED:  # `cancel` has told the waiters
                return False
            return super().set_running_or_notify_cancel()

    def _cancel(self, *, even_running: bool) -> bool:
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            if self._state == FINISHED or (self._state != PENDING and not even_running):
                return False
            # Both steps at once: the standard Future goes to the second one only when a worker
            # picks the work item up, and `wait` does not count it before.
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
            gang = self._gang
        self._invoke_callbacks()  # type: ignore[attr-defined]  # private to Future
        if gang is not None:
            gang.end(CancelledError())
        return True

    def _stop(self, *, kill: bool) -> None:
        """End the gang's processes; cancel one that has none yet, or not all."""
        gang = self._gang
        if gang is not None and all(info.pid is not None for info in self.ranks):
            gang.stop(kill=kill)
        else:
            self._cancel(even_running=True)

    def _is_of(self, gang: Endable) -> None:
        """Say which gang it is that runs; it is ended at once if that was asked for already."""
        with self._condition:
            self._gang = gang
            cancelled = self._state == CANCELLED_AND_NOTIFIED
        if cancelled:
            gang.end(CancelledError())

    def _settle(self, result: T | None = None, error: BaseException | None = None) -> None:
        """Finish the future, unless it was cancelled: a late outcome is dropped."""
        self._gang = None
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(result)  # type: ignore[arg-type]  # None may well be the result
            else:
                self.set_exception(error)


@contextmanager
def submitting(future: RankedFuture[Any]) -> Iterator[None]:
    """Span the packing and the start of a call: on Ctrl-C nobody will have its future."""
    __tracebackhide__ = True
    try:
        with Deferred():
            yield
    except BaseException:
        future.cancel()
        raise
