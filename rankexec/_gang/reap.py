"""Ending a gang: kill, break the caller's rank out, collect stacks, wait for every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rankexec._gang.caller import CallerRank
from rankexec._gang.loop import Loop
from rankexec._gang.members import Member
from rankexec._gang.output import warn

__all__ = ("collect_stacks", "free", "kill", "reap", "wait")

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
    for rank, member in members.items():
        try:
            if not member.ended:
                member.child.kill()
        except Exception as error:  # the launcher's own code; the others must end nevertheless
            warn(f"rank {rank} (pid {member.info.pid}) could not be killed: {error!r}")


def free(
    loop: Loop, rank: CallerRank, left: Callable[[], bool], close_side: Callable[[], None]
) -> None:
    """Free the caller's rank, which was told to break out, by all that may help, until it has left.

    Its peers are dead by now: that alone ends a collective of gloo. What is left is Python code, a
    rendezvous, NCCL, or a peer on a host that has gone silent.
    """
    began = time.monotonic()
    warned = False
    # Not at once: in the first milliseconds a store's client would take a connection that is shut
    # for a server that is not there yet, and wait before it tries again.
    loop.run(left, began + BREAK_SECONDS / 4)
    while not left():
        try:
            rank.cut_off()
        except Exception as error:  # the context's own code; the rank must be freed nevertheless
            warn(f"the context of rank {rank.number}, which was to abort, raised {error!r}")
        if loop.run(left, time.monotonic() + BREAK_SECONDS):
            return
        rank.break_out()
        stuck = time.monotonic() - began > STUCK_SECONDS
        if stuck and not warned:
            warned = True
            warn(
                f"the gang is over and its other ranks are ended, but rank {rank.number}, the "
                f"calling thread, is in a call that cannot be broken off:\n{rank.stack()}"
            )
        if stuck:
            # Not sooner: a rank about to connect to a store there would try again and again,
            # in C++, for as long as its time limit allows.
            close_side()


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
            warn(f"rank {rank} (pid {member.info.pid}) was killed but does not die")
        for watched in (member.child, member.child.channel, member.stdout, member.stderr):
            loop.ignore(watched)
        member.close()
    loop.close()
