"""The threads that supervise gangs."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rankexec._gang.deferred import Deferred

__all__ = ("Supervisors",)


class Supervisors(ThreadPoolExecutor):
    """The standard library's pool, which runs what it is given in order.

    It also knows what is not over, as a Ctrl-C cannot break off its joins: who waits for it waits
    for that first.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self._ends: dict[Future[Any], Callable[[], object]] = {}

    def supervise(
        self, end: Callable[[], object], supervise: Callable[..., object], *args: Any
    ) -> None:
        """Have a thread supervise a gang.

        Args:
            end: called, from any thread, when the gang is to be over whatever it does.
            supervise: returns when its processes are gone.
            *args: its arguments.

        Raises:
            RuntimeError: there is no thread to be had, or the pool is shut down.
        """
        # The context of this thread: a notebook's output finds its cell by it.
        context = contextvars.copy_context()
        with Deferred():  # or a thread may be started that the pool does not know of
            over = self.submit(context.run, supervise, *args)
            self._ends[over] = end
            over.add_done_callback(self._ends.pop)

    def unfinished(self) -> list[Future[Any]]:
        """Return, for each gang that is not over, what is done when its processes are gone."""
        return list(self._ends)

    def end(self) -> None:
        """End every gang that runs."""
        for end in list(self._ends.values()):
            end()

    def is_here(self) -> bool:
        """Return whether this is one of the threads."""
        return threading.current_thread() in self._threads

    def join(self, *, wait: bool) -> None:
        """Take no more, and wait for the threads; not for those whose gang does not end."""
        self.shutdown(wait=wait and (self.is_here() or not self._ends))
