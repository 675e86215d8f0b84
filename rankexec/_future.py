"""The future of a gang: a standard Future whose running gang can be cancelled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, TypeVar

from rankexec._gang.call import RankInfo

__all__ = ("RankedFuture",)

T = TypeVar("T")


class RankedFuture(Future[T]):
    """The result of one gang.

    Attributes:
        ranks: by rank, pid, host, device, exit code, peak memory in bytes and the times of the
            phases. Pid, start and ready are filled in while the gang runs; the times of context and
            function with the rank's outcome; exit code and peak memory when it is reaped,
            shortly after the future is done (`shutdown()` waits for that).
    """

    def __init__(self) -> None:
        super().__init__()
        self.ranks: list[RankInfo] = []
        self._end_gang: Callable[[], None] | None = None

    def cancel(self) -> bool:
        """Cancel the gang, also one that runs: its ranks are ended. Never blocks.

        Returns:
            False if it is finished already, else True.
        """
        return self._cancel(even_running=True)

    def result(self, timeout: float | None = None) -> T:
        """Return what the gang resolved to, or raise what it failed of; as the standard Future's.

        That one takes an exception that is false (its length is 0) for none.
        """
        error = self.exception(timeout)
        if error is not None and not bool(error):
            raise error
        return super().result(timeout)

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
            end_gang = self._end_gang
        self._invoke_callbacks()  # type: ignore[attr-defined]  # private to Future
        if end_gang is not None:
            end_gang()
        return True

    def _ends_with(self, end_gang: Callable[[], None]) -> None:
        """Say how a running gang is ended; it is ended at once if that was asked for already."""
        with self._condition:
            self._end_gang = end_gang
            cancelled = self._state == CANCELLED_AND_NOTIFIED
        if cancelled:
            end_gang()

    def _settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """Finish the future, unless it was cancelled: a late outcome is dropped."""
        self._end_gang = None  # it holds the gang
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
