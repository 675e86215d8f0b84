"""A rank forked from the guardian: how it begins and ends.

What a fork must not share is taken apart here: random generators, signal handlers, descriptors.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from multiprocess import Pipe, reduction
from multiprocess.connection import Connection

from rankexec._gang import output, worker
from rankexec._gang.restore import restore_environment
from rankexec._torch import do_not_wait_at_exit
from rankexec.launchers._preload import forget_edited

__all__ = ("Begin", "Forks")

AHEAD_SECONDS = 0.05
"""How long forking the next gang's children waits for the end of this one."""


@dataclass
class Begin:
    """What a forked rank is told: its descriptors and its whole environment."""

    fds: list[int]
    """channel, stacks, stdout, stderr"""
    environment: Mapping[str, str]


class Forks:
    """Forks ranks, some of them ahead of their call: those are parked until they are told.

    Args:
        close: called in every fork, to close what is the guardian's.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self.parked: dict[int, Connection] = {}
        """By pid, the line to each parked child."""
        self._close = close
        self._wanted = 0
        self._until = 0.0
        self._keep_seconds = 0.0
        self.not_before = 0.0
        """When to fork ahead; 0.0 once a gang is over, from which a fork takes no time."""

    def start(self, begin: Begin) -> int:
        """Return the pid of a rank that has begun; a parked one if there is one."""
        now = time.monotonic()
        self._until = now + self._keep_seconds
        self._wanted = 0  # its peers are started next; only then is there time to fork ahead
        # Beside a short gang it costs that milliseconds; where none is left, gangs come at once.
        self.not_before = now + AHEAD_SECONDS if self.parked else 0.0
        # The oldest one first: it is the likeliest to have settled down.
        for pid in list(self.parked):
            line = self.parked.pop(pid)
            with line, suppress(ConnectionError):  # it was killed while it waited
                line.send_bytes(pickle.dumps(begin.environment))
                with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as own:
                    reduction.sendfds(own, begin.fds)
                return pid
        return self._fork(lambda: begin)

    def park(self, count: int, seconds: float) -> None:
        """Keep `count` children parked, until none was used for `seconds`."""
        self._wanted, self._keep_seconds = count, seconds
        self._until = time.monotonic() + seconds

    def tend(self) -> float | None:
        """Fork one child ahead if one is missing, end all that nobody used for long.

        Returns the seconds after which it wants to be called again; None: not by itself.
        """
        now = time.monotonic()
        if now >= self._until:
            self.end_parked()
            return None
        if len(self.parked) < self._wanted:
            if now < self.not_before:
                return self.not_before - now
            ours, theirs = Pipe(duplex=True)
            pid = self._fork(lambda: _wait(theirs), ours)
            theirs.close()
            self.parked[pid] = ours
        if len(self.parked) < self._wanted:
            return 0.0
        # The kernel takes no more than 24 days at once, and not infinity.
        return min(self._until - time.monotonic(), 86400.0)

    def end_parked(self) -> None:
        """Let the parked children end: nobody will tell them anything."""
        self._wanted = 0
        while self.parked:
            self.parked.popitem()[1].close()

    def _fork(self, begin: Callable[[], Begin | None], *close: Connection) -> int:
        guardian = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                for line in [*self.parked.values(), *close]:
                    line.close()
                self._close()
            finally:
                _become_rank(begin, guardian)
        return pid


def _wait(line: Connection) -> Begin | None:
    """Wait (parked) for what this rank is to be; None: it is not needed."""
    if not line.poll():
        _rehearse()
    try:
        environment = pickle.loads(line.recv_bytes())
        with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as own:
            fds = reduction.recvfds(own, 4)
    except (EOFError, ConnectionError):
        return None
    line.close()
    return Begin(fds, environment)


def _become_rank(begin: Callable[[], Begin | None], guardian: int) -> NoReturn:
    """Run as a rank, in a fresh fork; never returns."""
    code = 1
    try:
        worker.die_with(guardian)
        do_not_wait_at_exit()
        _forget_signals()
        _forget_finalizers()
        _reseed()
        told = begin()
        if told is not None:
            _take_over(told)
            channel, stacks, _, _ = told.fds
            worker.main(channel, stacks, guardian)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _forget_finalizers() -> None:
    """Leave the finalizers of preloaded modules to the guardian: torch has hundreds.

    At the rank's end they would take 40 ms, most of it for pages that they touch and thereby copy.
    The old registry is kept, as freeing it would touch them too.
    """
    finalize: Any = weakref.finalize
    _inherited.append(finalize._registry)
    finalize._registry = {}


_inherited: list[Any] = []


def _rehearse() -> None:
    """Run an empty call: the pages that a rank writes to are this fork's own from then on.

    Nobody waits for it, and it takes a quarter off the time of the real call, which replaces all
    that this one sets, as in a session.
    """
    with suppress(OSError):  # no descriptors are left, say: then the call itself will tell
        nothing = [os.open(os.devnull, os.O_RDWR) for _ in range(2)]
        _take_over(Begin([-1, -1, *nothing], dict(os.environ)))
        worker.rehearse()


def _take_over(begin: Begin) -> None:
    _, _, stdout, stderr = begin.fds
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        # New streams: the guardian's were opened on files, and remember a position.
        stream = open(fd, "w", closefd=False)  # noqa: SIM115  # lives as long as we
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # Only what differs: each page that a fork touches is copied, and setting all takes 0.5 ms.
    restore_environment(begin.environment)
    forget_edited()
    threads = begin.environment.get("OMP_NUM_THREADS", "")
    if (torch := sys.modules.get("torch")) and threads.isdigit():
        torch.set_num_threads(max(1, int(threads)))  # it has read the variable long ago


def _reseed() -> None:
    """Give every rank its own random numbers; Python's `random` does that by itself."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)


def _end(code: int) -> NoReturn:
    """End as an interpreter does, but without tearing down the modules of the guardian."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads that must be
    with suppress(BaseException):
        atexit._run_exitfuncs()
    output.flush()
    os._exit(code)
