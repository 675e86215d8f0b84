"""What the system keeps for a process, and a child takes over: as it is in the caller at `submit`.

A program that the caller starts has all that by itself. A rank comes from a helper process that is
older, so it is told if something has changed since, and sets what differs. What only a privileged
process may raise again (hard limits, priority) stays where this one may not; user and groups are
the guardian's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from rankexec._gang.handlers import get_handler, set_handler

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # is asked for

__all__ = ("Surroundings", "surroundings", "take_over")


class Surroundings(NamedTuple):
    """Of a thread and its process; None or empty where the platform has no such thing."""

    cores: int
    """How many it may use, where that was asked."""
    affinity: frozenset[int] | None
    scheduler: tuple[int, int] | None
    """Policy and priority."""
    nice: int | None
    limits: Mapping[int, tuple[int, int]]
    """Soft and hard, by number."""
    ignored: frozenset[int]
    """Those of `_SIGNALS` that are ignored."""

    def is_like(self, other: Surroundings) -> bool:
        """Return whether there is nothing to take over from these to those."""
        return self[1:] == other[1:]


_LIMITS = sorted({getattr(resource, k) for k in dir(resource) if k.startswith("RLIMIT_")})
# Not those that the library uses, nor those that every Python ignores.
_NAMES = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGTSTP", "SIGTTIN", "SIGTTOU")
_SIGNALS = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]


def surroundings(cores: int = 0) -> Surroundings:
    """Return this thread's: on Linux each has its own affinity, policy and priority."""
    return Surroundings(
        cores,
        frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        _scheduler(),
        os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else None,
        {number: resource.getrlimit(number) for number in _LIMITS},
        frozenset(number for number in _SIGNALS if get_handler(number) == signal.SIG_IGN),
    )


def _scheduler() -> tuple[int, int] | None:
    with suppress(AttributeError, OSError):  # not on macOS; musl has it, and refuses
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    return None


def take_over(theirs: Surroundings) -> None:
    """Make this process, by its main thread, what the caller is, touching only what differs."""
    own = surroundings()
    if theirs.affinity not in (None, own.affinity):
        with suppress(OSError):  # none of these cores is this process's
            os.sched_setaffinity(0, theirs.affinity or ())
    if theirs.scheduler is not None and theirs.scheduler != own.scheduler:
        policy, priority = theirs.scheduler
        with suppress(OSError):
            os.sched_setscheduler(0, policy, os.sched_param(priority))
    if theirs.nice is not None and theirs.nice != own.nice:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, theirs.nice)
    for number in own.ignored ^ theirs.ignored:
        if get_handler(number) in (signal.SIG_DFL, signal.SIG_IGN):  # else somebody needs it
            set_handler(number, int(number in theirs.ignored))
    for number, limit in theirs.limits.items():
        if limit != own.limits[number]:
            _set_limit(number, limit, own.limits[number][1])


def _set_limit(number: int, limit: tuple[int, int], hard: int) -> None:
    try:
        resource.setrlimit(number, limit)
    except (OSError, ValueError):  # somebody privileged has raised the caller's
        unlimited = resource.RLIM_INFINITY  # which is no large number everywhere
        soft = min((each for each in (limit[0], hard) if each != unlimited), default=unlimited)
        with suppress(OSError, ValueError):
            resource.setrlimit(number, (soft, hard))
