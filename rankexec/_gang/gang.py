"""One gang, or one call of a session, seen from its supervising thread: start, run, settle, end.

Other threads talk to it by `report`, `left` and `end`, which wake it. It never runs code of the
user's: no unpickling of results, no callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rankexec._gang import reap
from rankexec._gang.breaking import GangEnded
from rankexec._gang.call import Died, Outcome, Raised, Returned
from rankexec._gang.caller import CallerRank
from rankexec._gang.crew import Crew
from rankexec._gang.deferred import Latch
from rankexec._gang.interrupts import Interrupts
from rankexec._gang.members import Member, unpack_raised
from rankexec._gang.outcomes import Outcomes, describe
from rankexec._gang.plan import Plan
from rankexec._gang.sets import Kept
from rankexec._gang.wire import Packed
from rankexec.errors import GangTimeout, LauncherDied
from rankexec.launchers import Ended

__all__ = ("Gang",)


class Gang:
    """All ranks of one call.

    Attributes, to be read when it is settled:
        verdict: why the gang was ended, if it was not by an outcome of its ranks.
        cause: the first failure of a rank.
        by_rank: every rank's outcome, as it was when the gang was settled.
        values: what the children returned, still packed; who takes them closes them.
        refused: of a session, the children's results that cannot travel.
        caller_value, caller_error: what the caller's rank returned or raised.
        stuck: of a session, the children that could not be broken off.
        began: whether every rank had unpacked the call.
        kept: of a session, what children have said that they have.
        crew: its child processes.
    """

    def __init__(
        self, crew: Crew, plan: Plan, interrupts: Interrupts, rank: CallerRank | None
    ) -> None:
        self.go = Latch()  # the caller's rank may begin, or is no longer wanted
        self.settled = Latch()
        self.verdict: BaseException | None = None
        self.cause: Raised | Died | None = None
        self.by_rank: list[Outcome | None] = []
        self.values: dict[int, Packed] = {}
        self.refused: dict[int, Raised] = {}
        self.stuck: list[int] = []
        self.caller_value: Any = None
        self.caller_error: BaseException | None = None
        self.began = False
        self.kept: list[Kept] = []
        self.crew = crew
        self._loop = crew.loop
        self._plan = plan
        self._place = -1 if plan.caller_rank is None else plan.caller_rank
        self._interrupts = interrupts
        self._rank = rank
        self._outcomes = Outcomes(len(plan.seats))
        self.deadline = None if plan.timeout is None else time.monotonic() + plan.timeout

    # --- for other threads ---

    def end(self, why: BaseException) -> None:
        """End the gang; `why` is what became of it, unless it was settled before."""
        self._loop.tell(partial(self._give_verdict, why))

    def stop(self, *, kill: bool) -> None:
        """End the children's processes, by SIGKILL or SIGTERM; the gang fails of their deaths."""
        self.crew.stop(kill=kill)

    def report(self, error: BaseException | None, value: Any) -> None:
        """Take the outcome of the caller's own rank, from inside its context."""
        if isinstance(error, GangEnded):  # we raised it; the cause lies elsewhere
            return
        now = time.monotonic()
        self.caller_error = error
        if error is None:
            self.caller_value = value
            outcome: Outcome = Returned(self._place, now)
        else:
            outcome = describe(self._place, now, error)
        self._loop.tell(partial(self._take, outcome))

    def left(self, error: BaseException | None) -> None:
        """Take it that the caller's rank has left its context, and what that raised."""
        if error is not None:
            self._loop.tell(partial(self._take, describe(self._place, time.monotonic(), error)))
        self._loop.tell(partial(self._outcomes.left, self._place))

    # --- the supervising thread ---

    def supervise(self) -> None:
        """Run the gang until it is settled; a failed one is dead by then, or broken off."""
        try:
            self._start()
            self._serve(lambda: all(member.ready for member in self.crew.members.values()))
            if not self._over():
                self._let_go()
                self._serve(lambda: False)
            if isinstance(self.verdict, GangTimeout):
                self._add_stacks()
        except BaseException as error:  # whatever it is, the gang must end and its caller be told
            self.verdict = error if self.verdict is None else self.verdict
        self.cause, self.by_rank = self._outcomes.cause(), list(self._outcomes.by_rank)
        try:
            failed = self.verdict is not None or self.cause is not None
            if failed:
                self._end()
            if failed or self._plan.stage != "hold":
                self._close_side()
            self._loop.ignore(self._interrupts.reader)
        finally:
            self.crew.gang = None
            self.settled.set()

    def _start(self) -> None:
        plan, self.crew.gang = self._plan, self
        if self._interrupts.reader is not None:
            self._loop.watch(self._interrupts.reader, self._on_interrupt, urgent=True)
        for member in self.crew.serve(plan):
            seat = plan.seats[member.info.rank]
            wants_value = plan.gather or seat.rank == 0
            details = (seat, plan.imports, wants_value, plan.stage, plan.sets)
            member.send("call", details, plan.packed)
            if member.ended is not None:  # between the calls of a session
                self.on_end(member, member.ended)

    def _let_go(self) -> None:
        for member in self.crew.members.values():
            member.send("go")
        self.began = True
        self.go.set()

    def _serve(self, until: Callable[[], bool]) -> None:
        """Handle what happens until `until`, or until the gang is over."""
        while not (until() or self._over()):
            stopping = self.crew.is_stopping()
            settled_at = self.crew.kill_at if stopping else self._outcomes.settled_at()
            limits = [t for t in (self.deadline, settled_at) if t is not None]
            self._loop.handle(min(limits, default=None))
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self._give_verdict(GangTimeout(self._plan.timeout or 0.0, {}))

    def _over(self) -> bool:
        if self.verdict is not None:
            return True
        return not self.crew.is_stopping() and self._outcomes.settled(time.monotonic())

    def _give_verdict(self, why: BaseException) -> None:
        if not self._over():
            self.verdict = why

    def _take(self, outcome: Outcome) -> None:
        self._outcomes.report(outcome, time.monotonic())

    # --- what happens ---

    def _on_interrupt(self) -> None:
        if self._interrupts.arrived():
            self._give_verdict(KeyboardInterrupt())

    def on_message(self, member: Member, kind: str, details: Any, packed: Packed | None) -> None:
        """Take a rank's message."""
        info, more = details
        member.note(info)
        if kind == "ready":
            member.ready = True
        elif kind == "returned":
            if packed is not None:
                self.values[member.info.rank] = packed
            self._take(Returned(member.info.rank, more))
        elif kind == "refused" and packed is not None:
            raised = unpack_raised(packed)
            self.refused[raised.rank] = raised
            self._take(Returned(raised.rank, raised.when))
        elif kind == "raised" and packed is not None:
            self._take(unpack_raised(packed))
        elif kind == "left":
            self.kept.append(more)
            if packed is not None:
                self._take(unpack_raised(packed))
            member.read_output()
            self._outcomes.left(member.info.rank)

    def on_end(self, member: Member, ended: Ended | Exception) -> None:
        """Take it that a rank's process is gone, or could not be started."""
        info = member.info
        if self._outcomes.has_left(info.rank):
            return
        if isinstance(ended, Exception):
            self._give_verdict(ended)
        elif ended.exitcode is None:
            self._give_verdict(LauncherDied(info.rank, info.pid))
        else:
            place = (info.pid or 0, info.host, ended.exitcode)
            self._take(Died(info.rank, ended.when, *place, member.stderr.tail()))
        self._outcomes.left(info.rank)

    def _end(self) -> None:
        """End every rank that is left; the peers first, which frees the caller's collective."""
        members = self.crew.members
        if self._plan.stage != "once" and self._break_off():
            return
        self.crew.kill()
        if self._rank is not None:
            self._rank.break_out()  # before it may go: then it does not begin
            self.go.set()
            left = partial(self._outcomes.has_left, self._place)
            reap.free(self._loop, self._rank, left, self._close_side)
        reap.wait(self._loop, members)

    def _break_off(self) -> bool:
        """Break every rank of a session out of its call. Returns whether all live and have left."""
        members = self.crew.members
        started = sum(member.info.pid is not None for member in members.values())
        children = len(self._plan.seats) - (self._rank is not None)
        if self.crew.has_lost() or started < children:
            return False
        for member in members.values():
            member.send("halt")
        if self._rank is not None:
            self._rank.break_out()
            self.go.set()
        left = partial(self._outcomes.has_left, self._place)
        reap.halt(self._loop, self._rank, left, lambda: self._outcomes.all_left)
        self.stuck = [rank for rank in members if not self._outcomes.has_left(rank)]
        return self._outcomes.all_left and not self.crew.has_lost()

    def _close_side(self) -> None:
        try:
            self._plan.side.close()
        except BaseException as error:  # the context's own caller side; the user is to see it
            self.verdict = error if self.verdict is None else self.verdict

    def _add_stacks(self) -> None:
        stacks = reap.collect_stacks(self._loop, self.crew.members)
        if self._rank is not None:
            stacks[self._place] = self._rank.stack()
        self.verdict = GangTimeout(self._plan.timeout or 0.0, stacks)
