"""Ranks that the guardian forks ahead of their call, and offers to the caller.

Each is started like any other, and waits for its caller's first message. The caller's ends of it
are put into a socket from which both the caller and the guardian take: who has taken a rank has it,
and no rank is used and ended at once. What the guardian takes back it closes, and the rank, whose
caller is gone, ends by itself.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence

from rankexec._gang.loop import LONGEST_SECONDS
from rankexec.launchers._ends import DESCRIPTORS, close_all, joined, receive_ends, send_ends
from rankexec.launchers._ranks import Ranks

__all__ = ("Standby",)

AHEAD_SECONDS = 0.05
"""How long forking the next gang's children waits for the end of this one."""


class Standby:
    """When ranks are forked ahead, and when they are taken back.

    Args:
        offered: the end to take from, as the caller has it.
        offers: the other.
        ranks: where they are found once they are started.
        start: starts one with these ends of its own, by that key; returns whether it could.
    """

    def __init__(
        self,
        offered: socket.socket,
        offers: socket.socket,
        ranks: Ranks,
        start: Callable[[list[int], int], bool],
    ) -> None:
        self._offered = offered
        self._offers = offers
        self._ranks = ranks
        self._start = start
        # The caller's own are positive, and no other guardian has these.
        self._keys = itertools.count(-os.getpid() << 32, -1)
        self._wanted = 0
        self._until = 0.0
        self._not_before = 0.0
        self._lost = 0

    def want(self, count: int, seconds: float, taken: Sequence[int]) -> None:
        """Keep `count` ranks forked ahead until none is taken for `seconds`.

        `taken` are the keys of those that the caller has taken since it said so last.
        """
        now = time.monotonic()
        # Beside a short gang it costs that milliseconds; where none was left, gangs come at once.
        self._not_before = now + AHEAD_SECONDS if taken else 0.0
        self._ranks.take(taken)
        self._wanted = min(count, _most())
        self._until = now + seconds

    def hand_over(self) -> tuple[int, float, tuple[()]]:
        """Take all back that nobody has taken; return what was wanted, as `want` takes it."""
        wanted = self._wanted, self._until - time.monotonic(), ()
        self._wanted = 0
        self._take_back()
        return wanted

    def over(self) -> None:
        """Note that ranks have ended: from then on a fork takes no time that anybody waits for."""
        self._not_before = 0.0
        if self._ranks.lost > self._lost:  # others may not live either: not before the next gang
            self._lost = self._ranks.lost
            self._wanted = self._ranks.parked()

    def tend(self) -> float | None:
        """Fork one rank ahead if one is missing; take all back that nobody has taken for long.

        Returns the seconds after which it wants to be called again; None: not by itself.
        """
        now = time.monotonic()
        if now >= self._until:
            self._wanted = 0
            self._take_back()
            return None
        self._take_back()
        if self._ranks.parked() < self._wanted:
            if now < self._not_before:
                return self._not_before - now
            self._fork()
        if self._ranks.parked() < self._wanted:
            return 0.0
        return min(self._until - time.monotonic(), LONGEST_SECONDS)

    def close(self) -> None:
        """In a fork: close what is the guardian's."""
        self._offered.close()
        self._offers.close()

    def _fork(self) -> None:
        if not self._offer(next(self._keys)):  # the next gang starts its ranks itself
            self._wanted = self._ranks.parked()

    def _offer(self, key: int) -> bool:
        """Start a rank, and offer it. Returns False if the system has no room for another."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            ours, theirs = joined()
            # Before it is there: whoever sees the process can rely on its being offered.
            send_ends(self._offers, key, ours)
        except OSError:  # at the limit of descriptors: ours, or those on their way
            close_all(theirs)
            return False
        finally:
            close_all(ours)
        return self._start(theirs, key)

    def _take_back(self) -> None:
        """Take back, the oldest first, what is more than is wanted."""
        while self._wanted == 0 or self._ranks.parked() > self._wanted:
            if (offer := receive_ends(self._offered)) is None:
                return
            key, ends = offer
            self._ranks.take([key])
            close_all(ends)


def _most() -> int:
    """Return how many ranks may be on offer.

    The kernel counts the descriptors that are on their way, all of a user's together, and refuses
    more than a process may have open. Other things are to be sent, too.
    """
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // (4 * DESCRIPTORS))
