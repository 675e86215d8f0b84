"""The `with` block of an executor, and of a session."""

from __future__ import annotations

import sys
from abc import abstractmethod
from concurrent.futures import Executor
from types import TracebackType

from rankexec._gang.absent import Stays
from rankexec._gang.deferred import Deferred

__all__ = ("Block",)


class Block(Stays, Executor):
    """An executor whose block ends what runs in it when it is left by Ctrl-C."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        with Deferred():  # another Ctrl-C is heard while it waits
            if exc_type is not None and issubclass(exc_type, _interrupts()):
                self._cancel_all()
            self.shutdown(wait=True)

    @abstractmethod
    def _cancel_all(self) -> None:
        """Cancel what is pending, and end what runs."""


def _interrupts() -> tuple[type[BaseException], ...]:
    """Return what Ctrl-C is when it leaves a block.

    Under asyncio it cancels a task. So does whoever else gives that up; the event loop is not to
    stand still for gangs that nobody awaits any more.
    """
    asyncio = sys.modules.get("asyncio.exceptions")
    return (KeyboardInterrupt,) if asyncio is None else (KeyboardInterrupt, asyncio.CancelledError)
