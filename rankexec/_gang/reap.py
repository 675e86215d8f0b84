"""Ending a gang: kill, break the caller's rank out, collect stacks, wait for every process."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from functools import partial

from rankexec._gang.caller import CallerRank
from rankexec._gang.loop import Loop
from rankexec._gang.members import Member
from rankexec._gang.outcomes import Outcomes

__all__ = ("break_out", "collect_stacks", "kill", "reap", "wait")

LEAVE_SECONDS = 2.0
"""How long a rank may take to end after its call, before its tree is killed."""
DIE_SECONDS = 10.0
"""How long a killed rank may take to be torn down (gigabytes take their time)."""
BREAK_SECONDS = 0.2
STUCK_SECONDS = 5.0
STACKS_SECONDS = 1.0
STACKS_QUIET_SECONDS = 0.1

Members = Mapping[int, Member]


def kill(members: Members) -> None:
    """End the children and all that they have started, by force; does not wait."""
    for member in members.values():
        if not member.ended:
            member.child.kill()


def break_out(loop: Loop, rank: CallerRank, place: int, outcomes: Outcomes) -> None:
    """Break the caller's rank out of its call, by all that may help, until it has left.

    Its peers are dead by now: that alone ends a collective. What is left is Python code, a
    rendezvous, or a peer on a host that has gone silent.
    """
    began = time.monotonic()
    warned = False
    left = partial(outcomes.has_left, place)
    while not loop.run(left, time.monotonic() + BREAK_SECONDS):
        rank.break_out()
        rank.shut_sockets()
        if not warned and time.monotonic() - began > STUCK_SECONDS:
            warned = True
            _warn(
                f"the gang is over and its other ranks are ended, but rank {place}, the calling "
                f"thread, is in a call that cannot be broken off:\n{rank.stack()}"
            )


def collect_stacks(loop: Loop, members: Members) -> dict[int, str]:
    """Return the Python stacks of the children's threads, whatever they are doing."""
    for member in members.values():
        member.child.show_stacks()
    limit = time.monotonic() + STACKS_SECONDS
    last_news = time.monotonic()
    while time.monotonic() < limit:
        loop.handle(time.monotonic() + STACKS_QUIET_SECONDS / 4)
        for member in members.values():
            if member.read_stacks():
                last_news = time.monotonic()
        quiet = time.monotonic() - last_news > STACKS_QUIET_SECONDS
        if quiet and all(member.stacks or member.ended for member in members.values()):
            break
    return {rank: m.stacks.decode("utf-8", "replace") for rank, m in members.items()}


def wait(loop: Loop, members: Members, seconds: float = DIE_SECONDS) -> bool:
    """Wait until no process of the gang is left. Returns whether that came in time."""
    return loop.run(lambda: all(m.ended for m in members.values()), time.monotonic() + seconds)


def reap(loop: Loop, members: Members) -> None:
    """Wait until no process of the gang is left, after two seconds by force; close everything."""
    if not wait(loop, members, LEAVE_SECONDS):
        kill(members)
        wait(loop, members)
    for rank, member in members.items():
        if not member.ended:  # in a system call that the kernel cannot break off
            _warn(f"rank {rank} (pid {member.info.pid}) was killed but does not die")
        for watched in (member.child, member.child.channel, member.stdout, member.stderr):
            loop.ignore(watched)
        member.close()
    loop.close()


def _warn(message: str) -> None:
    """Warn; where warnings are errors, print: a gang must be ended whatever the filters say."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=1)
    except RuntimeWarning:
        print(f"rankexec: {message}", file=sys.stderr)  # noqa: T201  # there is nobody to raise to
