"""Ranks whose gang is settled and whose processes have yet to end, and who waits for them."""

from __future__ import annotations

import math
import threading

from rankexec._gang.crew import Crew
from rankexec._gang.output import warn
from rankexec.errors import GangTimeout

__all__ = ("Leaving",)

WARNING_SECONDS = 10.0
"""How long a gang waits for the ranks of the one before without a word."""


class Leaving:
    """The gangs of an executor whose ranks are ending. For every thread."""

    def __init__(self) -> None:
        self._crews: set[Crew] = set()
        self._of_caller: Crew | None = None
        self._changed = threading.Condition()

    def begin(self, crew: Crew) -> None:
        """Note a gang with a caller's rank: the next one waits until its ranks are gone."""
        self._of_caller = crew

    def over(self, crew: Crew) -> None:
        """Note that they are, or will never be there."""
        with self._changed:
            if self._of_caller is crew:
                self._of_caller = None
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> None:
        """Wait for the gang with a caller's rank that was before; Ctrl-C ends its ranks.

        Raises:
            GangTimeout: they are not gone in time.
        """
        limit = math.inf if timeout is None else timeout
        try:
            if self._gone(min(WARNING_SECONDS, limit)):
                return
            if limit > WARNING_SECONDS:
                warn("a gang waits for the ranks of the one before, whose processes still end")
                if self._gone(None if timeout is None else limit - WARNING_SECONDS):
                    return
        except BaseException:
            self.end()
            raise
        raise GangTimeout(limit, {}, "start, as the ranks of the one before had not ended,")

    def _gone(self, seconds: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._of_caller is None, seconds)

    def reap(self, crew: Crew, leave_timeout: float | None) -> None:
        """Wait until no process of a settled gang is left."""
        with self._changed:
            self._crews.add(crew)
        try:
            crew.reap(leave_timeout)
        finally:
            with self._changed:
                self._crews.discard(crew)

    def end(self) -> None:
        """End the ranks of settled gangs by force, now; returns at once."""
        with self._changed:
            crews = list(self._crews)
        for crew in crews:
            crew.end()
