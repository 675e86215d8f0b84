"""The ranks that a guardian has started, and their end.

No process of a rank survives it. The guardian and every rank are subreapers: whatever a rank has
started stays below that rank while it lives, and comes to the guardian when it is dead, whether it
was daemonized, forked twice or put in a session of its own. So a child of the guardian that is no
rank belongs to a rank that is gone. It is killed; its children come next; the rank is reported as
ended only when none is left. Resource trackers, see `_gang.trackers`, end by themselves when all
others are gone, and are killed only if they do not.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from rankexec._gang.line import Line
from rankexec._gang.trackers import NEWS
from rankexec.launchers import Ended, Started

__all__ = ("Ranks", "kill_strays", "say")

TRACKER_SECONDS = 5.0
"""How long the resource trackers of dead ranks may take to remove what these have left."""

_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # nothing is made there
_MAXRSS_UNIT = 1 if os.uname().sysname == "Darwin" else 1024


def say(status: Line, news: Any) -> None:
    """Tell the caller what became of a rank."""
    with suppress(OSError):  # the caller is gone; we shall hear of it
        status.send(pickle.dumps(news))


@dataclass
class _Rank:
    key: int
    pid: int
    status: Line
    parked: bool
    """Whether it was started ahead of its call, and the caller has not taken it."""
    ended: Ended | None = None


class Ranks:
    """Those that run, and those that are dead but may have orphans."""

    def __init__(self) -> None:
        self._running: dict[int, _Rank] = {}  # by pid
        self._dead: list[_Rank] = []
        self._trackers: set[int] = set()
        self._finish_by = math.inf
        """When the trackers of the dead are killed."""
        self._reader, self.news = os.pipe()
        """Where the ranks say what resource trackers they have started."""
        os.set_blocking(self._reader, False)
        self._gone: set[str] = set()
        """Pids of them and of all that came to the guardian, since a rank was last reported."""
        self._deputy: int | None = None
        self._has_strays = False
        """Whether the deputy has died, perhaps with ranks."""
        self.lost = 0
        """How many have died that were parked."""

    def __bool__(self) -> bool:
        return bool(self._running or self._dead or self._deputy)

    def idle(self) -> bool:
        """Return whether there are none but parked ones."""
        return self.parked() == len(self._running) and not (self._dead or self._deputy)

    def add_deputy(self, pid: int) -> None:
        """Take in a process of ours that is no rank, and has some."""
        self._deputy = pid

    def parked(self) -> int:
        """Return how many were started ahead and wait to be taken."""
        return sum(rank.parked for rank in self._running.values())

    def take(self, keys: Container[int]) -> None:
        """Note that the caller has taken these."""
        for rank in self._running.values():
            rank.parked = rank.parked and rank.key not in keys

    def add(self, key: int, pid: int, status: Line, *, parked: bool) -> None:
        """Take in a process that was started as a rank, and say so."""
        self._running[pid] = _Rank(key, pid, status, parked)
        say(status, Started(pid, time.monotonic()))

    def close(self) -> None:
        """In a fork: close what belongs to other ranks."""
        for rank in [*self._running.values(), *self._dead]:
            rank.status.close()
        os.close(self._reader)

    def signal(self, key: int, number: int) -> None:
        """Send a signal to a rank, if it runs."""
        if rank := self._find(key):
            os.kill(rank.pid, number)  # not reaped yet, so the pid is still this rank's

    def kill(self, key: int) -> None:
        """Kill a rank and its descendants, if it runs."""
        if rank := self._find(key):
            self._kill_tree(rank)

    def kill_all(self) -> None:
        """Kill every rank and its descendants."""
        for rank in list(self._running.values()):
            self._kill_tree(rank)

    def reap(self) -> None:
        """Take in who has died, kill their orphans, report those that have none left.

        Called again for each death, an orphan's too, so it never needs to wait.
        """
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._gone.add(str(pid))
            self._trackers.discard(pid)
            if pid == self._deputy:
                self._deputy, self._has_strays = None, True
            if rank := self._running.pop(pid, None):
                exitcode = os.waitstatus_to_exitcode(status)
                rank.ended = Ended(exitcode, usage.ru_maxrss * _MAXRSS_UNIT, time.monotonic())
                self._dead.append(rank)
                self.lost += rank.parked
        if (self._dead or self._has_strays) and not self._kill_others():
            self._finish_by = math.inf
            self._has_strays = False
            _remove_shared_memory(self._gone)
            self._gone.clear()
            for rank in self._dead:
                say(rank.status, rank.ended)
                rank.status.close()
            self._dead.clear()

    def _find(self, key: int) -> _Rank | None:
        return next((rank for rank in self._running.values() if rank.key == key), None)

    def tend(self) -> float | None:
        """Kill trackers that do not finish; return after how many seconds to call this again."""
        if self._finish_by == math.inf:
            return None
        if (left := self._finish_by - time.monotonic()) <= 0:
            self._trackers.clear()
            self._kill_others()
            return None
        return left

    def _kill_tree(self, rank: _Rank) -> None:
        # The descendants first: DataLoader workers hold the rank's sockets and pipes, and its
        # peers notice nothing until they are gone; a rank of gigabytes takes long to be torn down.
        self._hear()
        with suppress(psutil.NoSuchProcess):
            for process in reversed(psutil.Process(rank.pid).children(recursive=True)):
                if process.pid not in self._trackers:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
        os.kill(rank.pid, signal.SIGKILL)  # not reaped yet, so the pid is still this rank's

    def _kill_others(self) -> bool:
        """Kill the orphans of dead ranks, except trackers. Returns whether there are any."""
        ours = {*self._running, self._deputy}
        orphans = [pid for pid in _children() if pid not in ours]
        if orphans:
            self._hear()
        others = [pid for pid in orphans if pid not in self._trackers]
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if orphans and not others:
            self._finish_by = min(self._finish_by, time.monotonic() + TRACKER_SECONDS)
        return bool(orphans)

    def _hear(self) -> None:
        """Take in which trackers have been started: those of dead ranks have been said by now."""
        with suppress(BlockingIOError):
            while data := os.read(self._reader, NEWS.size * 1024):
                self._trackers.update(pid for (pid,) in NEWS.iter_unpack(data))


def kill_strays() -> None:
    """Kill all children of this process, and theirs, which come to it then."""
    while strays := _children():
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.wait()


def _remove_shared_memory(pids: Container[str]) -> None:
    """Remove what these processes have left in /dev/shm.

    torch gives shared memory a name with its pid in it, and takes the name away a moment later: a
    DataLoader's worker that is killed in between leaves it for good.
    """
    for name in os.listdir(_SHARED_MEMORY) if os.path.isdir(_SHARED_MEMORY) else ():
        maker, _, rest = name.partition("_")
        if maker == "torch" and rest.partition("_")[0] in pids:
            with suppress(OSError):  # gone meanwhile; the others are removed nevertheless
                os.unlink(os.path.join(_SHARED_MEMORY, name))


def _children() -> list[int]:
    """Return the pids of this process's children, the dead but not yet reaped among them."""
    try:
        # Exact for us: only a reaped child leaves this list, and only this thread reaps.
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return [child.pid for child in psutil.Process().children()]
