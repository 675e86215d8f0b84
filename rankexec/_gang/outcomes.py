"""Where every rank reports, and which failure was the first."""

from __future__ import annotations

import os
import traceback
import types

from rankexec._gang.call import Died, Outcome, Raised, Returned

__all__ = ("Outcomes", "describe", "is_lost_connection", "users_part")

LATE_SECONDS = 2.0
"""How long a gang that failed waits for ranks that may know the cause."""
CERTAIN_SECONDS = 0.2
"""The same when the failure at hand is a cause by itself: only a report on its way can beat it."""

_LOST_TYPES = frozenset({"DistNetworkError", "DistStoreError", "DistBackendError"})
_LOST_TEXTS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection was likely closed",
    "Socket closed",
    "Socket Timeout",
    "failed to pass monitoredBarrier",
    "client socket has failed to connect",
    "gloo/transport/tcp",
    "ncclRemoteError",
    "remote process exited or there was a network error",
)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an exception, or what it was raised from, only says that a peer is gone."""
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if isinstance(chain, (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)):
            return True
        if str(type(chain).__module__).startswith("torch") and type(chain).__name__ in _LOST_TYPES:
            return True
        if isinstance(chain, RuntimeError) and any(text in _text(chain) for text in _LOST_TEXTS):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # the user's own __str__
        return f"<str() of it raised {broken!r}>"


def describe(rank: int, when: float, error: BaseException) -> Raised:
    """Return the outcome of a rank that raised `error`."""
    text = _text(error)
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    shown = "".join(
        traceback.format_exception(kind, error, users_part(error) or error.__traceback__)
    )
    return Raised(rank, when, error, name, text, shown, is_lost_connection(error))


def users_part(error: BaseException) -> types.TracebackType | None:
    """Return an exception's traceback from the first frame that is not ours; None: all are."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_HERE):
        frames = frames.tb_next
    return frames


_HERE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class Outcomes:
    """What the ranks of one gang have said so far. Values only: no process, no clock."""

    def __init__(self, world_size: int) -> None:
        self.by_rank: list[Outcome | None] = [None] * world_size
        self._left = [False] * world_size
        self._first_failure_seen: float | None = None

    def report(self, outcome: Outcome, now: float) -> None:
        """Take a rank's outcome. Its first failure stays; a success can still turn into one."""
        present = self.by_rank[outcome.rank]
        if present is None or isinstance(present, Returned):
            self.by_rank[outcome.rank] = outcome
        if not isinstance(outcome, Returned) and self._first_failure_seen is None:
            self._first_failure_seen = now

    def left(self, rank: int) -> None:
        """Note that a rank has left its context, or will never."""
        self._left[rank] = True

    @property
    def all_left(self) -> bool:
        return all(self._left)

    @property
    def all_reported(self) -> bool:
        return all(outcome is not None for outcome in self.by_rank)

    def has_left(self, rank: int) -> bool:
        return self._left[rank]

    def cause(self) -> Raised | Died | None:
        """Return the first failure: a lost connection loses to all else, then the clock decides."""
        failures = [o for o in self.by_rank if isinstance(o, (Raised, Died))]
        return min(failures, key=lambda o: (_is_consequence(o), o.when), default=None)

    def settled_at(self) -> float | None:
        """Return when a failed gang stops waiting; None: nothing has failed."""
        cause = self.cause()
        if cause is None or self._first_failure_seen is None:
            return None
        patient = _is_consequence(cause) or self.all_reported
        return self._first_failure_seen + (LATE_SECONDS if patient else CERTAIN_SECONDS)

    def settled(self, now: float) -> bool:
        """Return whether the gang is over: all have left, or a failure has waited long enough."""
        limit = self.settled_at()
        return (self.all_left and self.all_reported) or (limit is not None and now >= limit)


def _is_consequence(outcome: Raised | Died) -> bool:
    return isinstance(outcome, Raised) and outcome.lost_connection
