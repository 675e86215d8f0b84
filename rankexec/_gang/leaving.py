"""The gang with a caller's rank whose processes have yet to end: the next one waits for them."""

from __future__ import annotations

import math

from rankexec._gang.crew import Crew
from rankexec._gang.deferred import Deferred, Latch
from rankexec._gang.output import warn
from rankexec.errors import GangTimeout

__all__ = ("Leaving",)

WARNING_SECONDS = 10.0
"""How long a gang waits for the ranks of the one before without a word."""


class Leaving:
    """Of an executor, the gang with a caller's rank that was last, until its ranks are gone."""

    def __init__(self) -> None:
        self._last: tuple[Crew, Latch] | None = None

    def begin(self, crew: Crew) -> None:
        """Note a gang."""
        self._last = crew, Latch()

    def over(self, crew: Crew) -> None:
        """Note that its ranks are gone, or will never be there."""
        if self._last is not None and self._last[0] is crew:
            self._last[1].set()
            self._last = None

    def wait(self, timeout: float | None) -> None:
        """Wait for the ranks of the one before; Ctrl-C ends them.

        Raises:
            GangTimeout: they are not gone in time.
        """
        if (last := self._last) is None:
            return
        crew, over = last
        limit = math.inf if timeout is None else timeout
        with Deferred() as deferred:
            try:
                if deferred.wait([over], min(WARNING_SECONDS, limit)):
                    return
                if limit > WARNING_SECONDS:
                    warn("a gang waits for the ranks of the one before, whose processes still end")
                    if deferred.wait([over], None if timeout is None else limit - WARNING_SECONDS):
                        return
            except KeyboardInterrupt:
                crew.stop(kill=True)
                raise
        raise GangTimeout(limit, {}, "start, as the ranks of the one before had not ended,")
