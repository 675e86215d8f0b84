"""Ending a gang: kill, break the caller's rank out, collect stacks, wait for every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rankexec._gang.breaking import BREAK_SECONDS, CUT_OFF_AFTER_SECONDS
from rankexec._gang.caller import CallerRank
from rankexec._gang.loop import Loop
from rankexec._gang.members import Member
from rankexec._gang.output import warn
from rankexec._gang.stacks import waited_for

__all__ = ("collect_stacks", "free", "halt", "kill", "reap", "wait", "warn_late")

DIE_SECONDS = 10.0
"""How long a killed rank may take to be torn down (gigabytes take their time)."""
HALT_SECONDS = 2.0
"""How long a rank of a session may take to be broken off its call, before its tree is killed."""
START_SECONDS = 0.3
"""How long the news that a rank has been started may be on its way."""
STUCK_SECONDS = 5.0
STACKS_SECONDS = 1.0
STACKS_QUIET_SECONDS = 0.1

Members = Mapping[int, Member]


def kill(members: Members) -> None:
    """End the children and all that they have started, by force; does not wait."""
    for rank, member in members.items():
        try:
            if member.ended is None:
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
    loop.run(left, began + CUT_OFF_AFTER_SECONDS)
    while not left():
        rank.cut_off()
        if loop.run(left, time.monotonic() + BREAK_SECONDS):
            return
        rank.break_out()
        if rank.cleans_up():
            began = time.monotonic()
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


def halt(
    loop: Loop, rank: CallerRank | None, left: Callable[[], bool], all_left: Callable[[], bool]
) -> None:
    """Wait until the ranks of a session, told to break off, have left their call, but not long.

    The children's own threads see to them; here it is the caller's rank that is freed, if there is
    one that has not `left`.
    """
    limit = time.monotonic() + HALT_SECONDS

    def left_within(seconds: float) -> bool:
        return loop.run(left, min(limit, time.monotonic() + seconds)) or time.monotonic() >= limit

    if rank is not None:
        rank.break_off(left_within)
    loop.run(all_left, limit)


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
        if quiet and all(member.stacks or member.ended is not None for member in members.values()):
            break
    return {rank: m.stacks.decode("utf-8", "replace") for rank, m in members.items()}


def warn_late(loop: Loop, members: Members, seconds: float) -> None:
    """Say which ranks have not ended in time after their call, and what they wait for."""
    late = {rank: member for rank, member in members.items() if not member.is_gone()}
    stacks = collect_stacks(loop, late)
    for rank, member in late.items():
        if member.ended is None:
            warn(
                f"rank {rank} (pid {member.info.pid}) did not end within {seconds:g} s after its "
                f"call (leave_timeout) and is ended by force; it waited for "
                f"{waited_for(stacks[rank], member.threads)}"
            )


def wait(loop: Loop, members: Members, seconds: float = DIE_SECONDS) -> bool:
    """Wait until no process of the gang is left. Returns whether that came in time.

    A rank that nobody has started yet is no process. Its launcher is busy, with imports that may
    take minutes, and will kill it at its start.
    """
    now = time.monotonic()
    news_by = now + min(seconds, START_SECONDS)
    return loop.run(lambda: all(m.ended is not None for m in members.values()), news_by) or (
        loop.run(lambda: all(m.is_gone() for m in members.values()), now + seconds)
    )


def reap(loop: Loop, members: Members) -> None:
    """Wait until no process of a gang that was killed, or has ended, is left; close everything."""
    wait(loop, members)
    for rank, member in members.items():
        if not member.is_gone():  # in a system call that the kernel cannot break off
            warn(f"rank {rank} (pid {member.info.pid}) was killed but does not die")
        for watched in (member.child, member.child.channel, member.stdout, member.stderr):
            loop.ignore(watched)
        member.close()
    loop.close()
