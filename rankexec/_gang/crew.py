"""The child processes of a gang or of a session, and the loop on which their news is heard."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from rankexec._gang import reap
from rankexec._gang.loop import Loop
from rankexec._gang.members import Member
from rankexec._gang.output import OutputReader
from rankexec._gang.plan import Plan
from rankexec._gang.wire import Packed
from rankexec.errors import SessionLost
from rankexec.launchers import Ended, Started

__all__ = ("Crew",)


TERMINATE_SECONDS = 30.0
"""How long ranks that were sent SIGTERM may take to end, before they are killed; as torchrun's."""
LOOK_SECONDS = 0.25
"""How often a gang's time limit is looked at while nobody reads the caller's output."""


class Hears(Protocol):
    """The gang whose call the crew runs.

    Attributes:
        verdict: why it is ended, if it is.
        deadline: when it has to be over (monotonic).
    """

    verdict: BaseException | None
    deadline: float | None

    def on_message(self, member: Member, kind: str, details: Any, packed: Packed | None) -> None:
        """Take a rank's message."""

    def on_end(self, member: Member, ended: Ended | Exception) -> None:
        """Take it that a rank's process is gone, or could not be started."""


class Crew:
    """Processes without a call of their own; `gang` hears of them while it runs one."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.members: dict[int, Member] = {}
        self.gang: Hears | None = None
        self.kill_at: float | None = None
        """When those that were told to terminate are killed."""
        self._lost = False
        self._killed = False

    def serve(self, plan: Plan) -> Iterator[Member]:
        """Yield each child, ready to be sent the plan's call; start them with the first."""
        if self.members:
            for rank, member in self.members.items():
                member.serve(plan.infos[rank], plan.output, self._takes)
                yield member
            return
        seats = [seat for seat in plan.seats if seat.rank != plan.caller_rank]
        environments = [plan.environments[seat.rank] for seat in seats]
        children = plan.launcher.start(seats, environments, plan.preparation)
        for seat, child in zip(seats, children, strict=True):
            member = Member(child, plan.infos[seat.rank], plan.prefix(seat.rank))
            self.members[seat.rank] = member
            self.loop.watch(child.channel, partial(self._on_message, member))
            self.loop.watch(child, partial(self._on_news, member))
            for reader in (member.stdout, member.stderr):
                self.loop.watch(reader, partial(self._on_output, reader))
            member.serve(plan.infos[seat.rank], plan.output, self._takes)
            yield member

    def has_lost(self) -> bool:
        """Return whether one of the processes is gone, or about to be."""
        return self._lost or any(member.ended is not None for member in self.members.values())

    def why_lost(self, stuck: Sequence[int]) -> SessionLost:
        """Return the error that names the first that is `stuck`, or else the first that ended."""
        for rank in stuck:
            return SessionLost(rank, self.members[rank].info.pid, None, stuck=True)
        # The others are let go at once, and may have ended by now, too.
        ended = [(m.ended.when, m) for m in self.members.values() if isinstance(m.ended, Ended)]
        if not ended:
            return SessionLost(None, None, None)
        first = min(ended, key=lambda pair: pair[0])[1].info
        return SessionLost(first.rank, first.pid, first.exitcode)

    def kill(self) -> None:
        """End all of them, by force."""
        self._lost = self._killed = True
        self.kill_at = None
        reap.kill(self.members)

    def stop(self, *, kill: bool) -> None:
        """End all of them, from any thread: by force, or by a signal that they may handle first."""
        self._lost = True
        self.loop.tell(self.kill if kill else self._terminate)

    def _terminate(self) -> None:
        self.kill_at = time.monotonic() + TERMINATE_SECONDS
        for member in self.members.values():
            if member.ended is None:
                member.child.terminate()

    def is_stopping(self) -> bool:
        """Return whether some were told to terminate and may still do so; kill the overdue."""
        if self.kill_at is None or all(m.ended is not None for m in self.members.values()):
            return False
        if time.monotonic() < self.kill_at:
            return True
        self.kill()
        return False

    def dismiss(self) -> None:
        """Let the ranks end."""
        for member in self.members.values():
            member.send("leave")

    def reap(self, leave_timeout: float | None) -> None:
        """Wait until no process is left, at last by force, and close what was held of them."""
        limit = math.inf if leave_timeout is None else leave_timeout
        if self.kill_at is not None:
            limit = min(limit, max(0.0, self.kill_at - time.monotonic()))
        in_time = self._killed or reap.wait(self.loop, self.members, limit)
        if not in_time and not self._killed:
            reap.warn_late(self.loop, self.members, limit)
            self.kill()
        reap.reap(self.loop, self.members)

    def _takes(self, descriptor: int, limit: float) -> bool:
        """Wait for the reader of the caller's own output: while a gang runs, until that is to end.

        A gang that is ended by now waits as long as the last rank's output may take: `limit`.
        """
        while True:
            until, gang = limit, self.gang
            if gang is not None and gang.verdict is None and not self._killed:
                until = math.inf if gang.deadline is None else gang.deadline
            if self.loop.takes(descriptor, min(until, time.monotonic() + LOOK_SECONDS)):
                return True
            if time.monotonic() >= until:
                return False

    def _on_output(self, reader: OutputReader) -> None:
        if not reader.drain():
            self.loop.ignore(reader)

    def _on_message(self, member: Member) -> None:
        message = member.receive()
        if message is None:
            self.loop.ignore(member.child.channel)
        elif message[0] == "waits":
            member.threads = message[1]
        elif self.gang is not None:
            self.gang.on_message(member, *message)

    def _on_news(self, member: Member) -> None:
        try:
            news = member.child.news()
        except Exception as error:  # it could not be started
            self._on_end(member, error)
            return
        for item in news:
            if isinstance(item, Started):
                member.begin(item.pid, item.when)
            else:
                self._on_end(member, item)

    def _on_end(self, member: Member, ended: Ended | Exception) -> None:
        # Its last words first: they may be lying in the channel.
        while self.loop.watches(member.child.channel):
            self._on_message(member)
        self.loop.ignore(member.child)
        member.read_output()
        member.end(ended)
        if self.gang is not None:
            self.gang.on_end(member, ended)
