"""The thread of a session: it watches the ranks, and runs what is submitted, in order."""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from rankexec._future import RankedFuture
from rankexec._gang.crew import Crew
from rankexec._gang.deferred import Deferred, Latch, finish

__all__ = ("Watch",)

Work = Callable[[], object]


class Watch:
    """Stands until it is closed and all is done, or until a rank has died. Idle, it takes no CPU.

    Args:
        crew: the ranks; when there is nothing more to do, they are let go and reaped.
        at_end: called then, at last.
        leave_timeout: seconds that the ranks may take to end when they are let go.
    """

    def __init__(self, crew: Crew, at_end: Callable[[], None], leave_timeout: float | None) -> None:
        self.closing = False
        self._leave_timeout = leave_timeout
        self._crew = crew
        self._at_end = at_end
        self._futures: weakref.WeakSet[RankedFuture[Any]] = weakref.WeakSet()
        self._work: deque[Work] = deque()
        self._lock = threading.Lock()
        self._over = False
        self._ended = Latch()
        self._thread = threading.Thread(target=self._run, name="rankexec-session")
        with Deferred():
            self._thread.start()

    def do(self, work: Work) -> bool:
        """Have the thread do something; returns False if there is none any more."""
        context = contextvars.copy_context()  # a notebook's output finds its cell by it
        with self._lock:
            if self._over or self.closing:
                return False
            self._work.append(partial(context.run, work))
        self._crew.loop.tell(_wake)
        return True

    def queue(self, future: RankedFuture[Any], work: Work) -> bool:
        """Have the thread run what resolves a future; returns False if there is none any more."""
        self._futures.add(future)
        return self.do(work)

    def cancel(self, *, even_running: bool) -> None:
        """Cancel the calls that are pending, or run."""
        for future in list(self._futures):
            future._cancel(even_running=even_running)

    def stop(self, *, kill: bool) -> None:
        """End the ranks' processes, by SIGKILL or SIGTERM."""
        self._crew.stop(kill=kill)

    def close(self) -> None:
        """Let the thread end when all is done, and wait for it; Ctrl-C ends the ranks at once."""
        with Deferred():
            with self._lock:
                self.closing = True
            self._crew.loop.tell(_wake)
            if not self.is_here():
                finish([self._ended], partial(self.stop, kill=True))
                self._thread.join()

    def is_here(self) -> bool:
        """Return whether this is that thread: a future's callback may be what is asking."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
                del work  # idle, hold nothing of the user's
            self._crew.dismiss()
            self._crew.reap(self._leave_timeout)
            self._at_end()
        finally:
            self._ended.set()

    def _next(self) -> Work | None:
        """Wait for something to do; None when there will be no more."""
        while True:
            with self._lock:
                if self._work:
                    return self._work.popleft()
                if self.closing or self._crew.has_lost():
                    self._over = True
                    return None
            self._crew.loop.handle(None)


def _wake() -> None:
    """Nothing: what counts is that the loop looks around."""
