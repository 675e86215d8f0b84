"""`map`: with a `caller_rank` each gang runs when its result is asked for, else ahead of that."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeoutError  # no alias in 3.10
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankexec._settings import Settings

__all__ = ("LazyMap", "run_ahead")


class LazyMap(Iterator[Any]):
    """The iterator that `map` returns.

    Once started, closing or collecting it drops the rest. `shutdown(wait=True)` runs what is still
    held or was never started.
    """

    def __init__(
        self,
        submit: Callable[[Settings, Any], Future[Any]],
        settings: Settings,
        items: Iterator[Any],
        timeout: float | None,
        started: Callable[[LazyMap], None],
        buffersize: int | None = None,
    ) -> None:
        self._submit = submit
        self._settings = settings
        # Without a buffer size they are read now, as the standard library does.
        self._items: Iterator[Any] | None = items if buffersize else iter(list(items))
        self._ran: deque[Future[Any]] = deque()
        self._end = None if timeout is None else timeout + time.monotonic()
        self._started: Callable[[LazyMap], None] | None = started
        self._buffersize = buffersize

    def __next__(self) -> Any:
        if self._started is not None:
            started, self._started = self._started, None
            started(self)
        if not self._ran and not self._run_next():
            raise StopIteration
        try:
            return self._ran.popleft().result()
        except StopIteration as error:  # who iterates would take it for the end of the items
            self._fail()
            raise RuntimeError("a rank's function raised StopIteration") from error
        except BaseException:
            self._fail()
            raise

    def _run_next(self) -> bool:
        if self._items is None:
            return False
        left = None if self._end is None else self._end - time.monotonic()
        if left is not None and left <= 0:
            self.close()
            raise FuturesTimeoutError("map's timeout is over")
        try:
            item = next(self._items)
        except StopIteration:
            self._items = None
            return False
        limits = [t for t in (self._settings.timeout, left) if t is not None]
        settings = replace(self._settings, timeout=min(limits, default=None))
        self._ran.append(self._submit(settings, item))
        return True

    def run_rest(self) -> None:
        """Run what is left, and keep the results for whoever still holds the iterator.

        With a buffer size, as many gangs as it would hold: the items may be without end.
        """
        rounds = itertools.count() if self._buffersize is None else range(self._buffersize)
        with suppress(FuturesTimeoutError):  # too late for the rest, and nobody asks for it now
            for _ in rounds:
                if not self._run_next():
                    break
                if self._ran[-1].exception() is not None:
                    self._items = None

    def _fail(self) -> None:
        self.close()  # as the standard library's: one failure ends the iteration
        self._ran.clear()

    def close(self) -> None:
        """Drop the rest."""
        self._items = None

    def warn_dropped(self) -> None:
        """Say at interpreter exit that gangs were never run."""
        if self._items is not None and next(self._items, None) is not None:
            warnings.warn(
                "an iterator of RankedExecutor.map was never finished: its gangs did not run; "
                "iterate it, or shut the executor down",
                RuntimeWarning,
                stacklevel=2,
            )
        self.close()


def run_ahead(
    submit: Callable[[Any], Future[Any]],
    items: Iterator[Any],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """Yield results in order; submit all gangs now, or keep at most `buffersize` ahead."""
    end = None if timeout is None else timeout + time.monotonic()
    ahead: deque[Future[Any]] = deque()
    try:
        for item in itertools.islice(items, buffersize):
            ahead.append(submit(item))
    except BaseException:  # Ctrl-C, perhaps: nobody will have these futures
        for future in ahead:
            future.cancel()
        raise

    def results() -> Iterator[Any]:
        try:
            while ahead:
                for item in items:
                    ahead.append(submit(item))
                    break
                left = None if end is None else end - time.monotonic()
                yield _result_or_cancel(ahead.popleft(), left)
        finally:
            for future in ahead:
                future.cancel()

    return results()


def _result_or_cancel(future: Future[Any], timeout: float | None) -> Any:
    try:
        return future.result(timeout)
    finally:
        future.cancel()
        del future  # or its exception's traceback holds it
