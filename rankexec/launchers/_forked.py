"""A rank forked from the guardian: how it begins and ends.

What a fork must not share is taken apart here: random generators, signal handlers, descriptors.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from rankexec._gang import finish, worker
from rankexec._gang.channel import Channel
from rankexec._gang.environment import restore_environment
from rankexec._gang.line import Line
from rankexec._notebook import cell  # noqa: F401  # to import it takes a rank 8 ms, for every cell
from rankexec._torch import do_not_wait_at_exit
from rankexec.launchers._preload import forget_edited

__all__ = ("fork_rank",)


def fork_rank(ends: Sequence[int], close: Callable[[], None], *, ahead: bool) -> int:
    """Fork a rank from this process, the guardian; return its pid.

    Args:
        ends: descriptors of its channel, stacks, stdout and stderr.
        close: called in the fork, to close what is the guardian's.
        ahead: whether there is time to get ready, as its call is not there yet.
    """
    guardian = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            close()
        finally:
            _become_rank(ends, guardian, ahead=ahead)
    return pid


def _become_rank(ends: Sequence[int], guardian: int, *, ahead: bool) -> NoReturn:
    """Run as a rank, in a fresh fork; never returns."""
    code = 1
    try:
        worker.die_with(guardian)
        finish.begin()
        if "torch" in sys.modules:
            do_not_wait_at_exit()
        _forget_signals()
        _reseed()
        channel, stacks, stdout, stderr = ends
        _take_streams(stdout, stderr)
        line = Channel(Line(channel))
        if ahead and not line.poll():
            # The pages that a rank writes to are this fork's own from then on. Nobody waits for it,
            # and it takes a third off the time of the real call, which replaces all that this sets.
            with suppress(OSError):  # no descriptors are left, say: then the call itself will tell
                worker.rehearse(_take_environment)
        worker.serve(line, stacks, _take_environment)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        finish.finish(code)


def _forget_signals() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_streams(stdout: int, stderr: int) -> None:
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        # New streams: the guardian's were opened on files, and remember a position.
        stream = open(fd, "w", closefd=False)  # noqa: SIM115  # lives as long as we
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _take_environment(environment: Mapping[str, str]) -> None:
    # Only what differs: each page that a fork touches is copied, and setting all takes 0.5 ms.
    zone = os.environ.get("TZ")
    restore_environment(environment)
    if os.environ.get("TZ") != zone:
        time.tzset()  # the C library has read it long ago
    forget_edited()
    threads = environment.get("OMP_NUM_THREADS", "")
    if (torch := sys.modules.get("torch")) and threads.isdigit():
        torch.set_num_threads(max(1, int(threads)))  # it has read the variable long ago


def _reseed() -> None:
    """Give every rank its own random numbers; Python's `random` does that by itself."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
