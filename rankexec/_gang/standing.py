"""A gang held open: its processes, the thread that watches them, and its context in the caller."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rankexec._future import RankedFuture
from rankexec._gang import frameworks
from rankexec._gang.call import Call, Raised, RankInfo, Stage, make_context
from rankexec._gang.caller import CallerRank
from rankexec._gang.crew import Crew
from rankexec._gang.deferred import Deferred
from rankexec._gang.gang import Gang
from rankexec._gang.held import Held
from rankexec._gang.interrupts import Interrupts
from rankexec._gang.names import Names
from rankexec._gang.namespace import set_in_main
from rankexec._gang.output import warn
from rankexec._gang.plan import Plan, prepare
from rankexec._gang.restore import OwnGroup, as_before, turn
from rankexec._gang.run import Job, Part, conduct_apart, conduct_here, run_here
from rankexec._gang.sets import NOTHING
from rankexec._gang.sockets import Spared
from rankexec._gang.watch import Watch
from rankexec._settings import Settings
from rankexec._slots import Slots
from rankexec.errors import NotShippable, SessionLost
from rankexec.launchers import Launcher

__all__ = ("Standing",)

LEAVE_SECONDS = 10.0
"""How long the ranks may take to leave their context after a call that failed."""


class _Entry(NamedTuple):
    """The context as it was entered last, and in the caller's rank."""

    plan: Plan
    held: Held


class Standing:
    """The processes of a session. See `run.Processes`.

    Its thread watches them between calls too, and supervises each call.

    Args:
        settings: of the executor; the calls have their own.
        slots: what the devices are taken from, for as long as the session lasts.
        launcher: what starts the children.

    Attributes:
        names: what of the caller's the ranks have.
        infos: the ranks, as the last call has seen them.
        watch: its thread, and the calls that this runs.
        devices: what is taken.
    """

    def __init__(self, settings: Settings, slots: Slots, launcher: Launcher) -> None:
        self.names = Names(settings.world_size, settings.caller_rank)
        self.infos: list[RankInfo] = []
        self._stuck: list[int] = []
        self._spared = Spared(between=True)
        self._own: frameworks.Kept = {}  # what they keep in the caller's rank, between calls
        self._settings = settings
        self._launcher = launcher
        self._pid = os.getpid()
        self._own_group = OwnGroup()
        self._entry: _Entry | None = None
        self._entered = False
        self._job: Job | None = None
        self._gang: Gang | None = None
        holding = ExitStack()
        with Deferred(), ExitStack() as undo:
            undo.callback(holding.close)
            launcher.lease()
            holding.callback(launcher.release)
            taken = slots.taken(settings.world_size, for_session=True)
            self.devices = holding.enter_context(taken)
            self._crew = Crew()
            undo.callback(self._crew.reap, 0.0)
            self.watch = Watch(self._crew, holding.close, settings.leave_timeout)
            undo.pop_all()

    def enter(self) -> None:
        """Start the ranks and have them enter the context. Raises what that has raised."""
        self._run(self._own_job("hold", self._settings.timeout))

    def check_alive(self) -> None:
        """Raise SessionLost if a rank is known to be dead."""
        if self._crew.has_lost():
            raise self._crew.why_lost(self._stuck)

    def queue(self, job: Job) -> None:
        """Have a job whose ranks are all children run when those before it are done."""
        if not self.watch.queue(job.future, partial(self.run_apart, job)):
            job.close()
            raise self._crew.why_lost(self._stuck)

    def _run(self, job: Job) -> None:
        """Run a job of the session's own, and raise what it has raised."""
        future = job.future
        if self._settings.caller_rank is not None:
            run_here(job)
        else:
            self.queue(job)
            if self.watch.is_here():  # a future's callback: the job comes after it
                return
        try:
            future.result()
        except KeyboardInterrupt:  # what is to come before it will not end by itself
            self.watch.cancel(even_running=True)
            raise

    # --- for jobs, see `run.Processes` ---

    def run_apart(self, job: Job) -> None:
        conduct_apart(job)
        job.close()
        self._job = None  # it holds the user's arguments

    @contextmanager
    def standing(self, job: Job) -> Iterator[None]:
        following = self.names.following(job.sets, job.going)
        with as_before(keep_group=True), frameworks.held(self._own), following:
            try:
                with self._own_group.noted():
                    yield
            finally:
                if self._gang is not None:
                    self._see_to(self._gang, lambda job: conduct_here(job, Interrupts()))
                self._gang = self._job = None

    def prepare(self, job: Job) -> Part:
        self._job = job
        self.check_alive()
        entry, self.infos = self._entry, job.future.ranks
        if entry is None or (job.stage == "hold" and not self._entered):
            entry = self._entry = self._enter()
        entry.held.stage = job.stage
        for info, known in zip(self.infos, entry.plan.infos, strict=True):
            info.pid, info.host, info.device = known.pid, known.host, known.device
        plan = replace(
            entry.plan,
            packed=job.packed,
            imports=job.settings.imports,
            timeout=job.settings.timeout,
            output=job.settings.output,
            gather=job.settings.gather is not False,
            infos=self.infos,
            stage=job.stage,
            sets=NOTHING if job.going is None else job.going.sets,
        )
        return Part(plan, entry.held, CallerRank(plan.seats[plan.caller_rank or 0], self._spared))

    def _enter(self) -> _Entry:
        """Decide everything once more: a new port, a new store, a new context for the caller."""
        if self._entry is not None:
            self._entry.plan.side.close()
        context = make_context(self._settings.ctx)
        plan = prepare(None, self._settings, self.devices, self._launcher, context, self.infos)
        return _Entry(plan, Held(context))

    def drop(self, job: Job) -> None:
        if (going := job.going) is None or not going.values:
            return
        if self.watch.is_here() and not self._crew.has_lost():  # later calls rely on these names
            with suppress(NotShippable), closing(self._own_job("hold", None, going.values)) as own:
                conduct_apart(own)
                return
        going.lost()

    def crew(self) -> Crew:
        self._entered = self._job is not None and self._job.stage == "hold"
        return self._crew

    def end(self) -> None:
        self._crew.stop(kill=True)

    def supervise(self, gang: Gang) -> None:
        if not self.watch.do(gang.supervise):
            raise self._crew.why_lost(self._stuck)
        self._gang = gang

    def settled(self, gang: Gang) -> None:
        self._see_to(gang, conduct_apart)

    # --- after a call, and at the end ---

    def _see_to(self, gang: Gang, conduct: Callable[[Job], Gang | None]) -> None:
        """Leave the context on every rank if the call has failed; see whether all live."""
        job = self._job
        if job is not None and (going := job.going) is not None:
            if not gang.began:
                going.lost()
            going.ended(gang.kept)
        if gang.verdict is None and gang.cause is None:
            return
        self._entered = False
        if self._entry is not None:
            self._entry.held.clean_up()
        if not self._crew.has_lost() and job is not None and job.stage == "hold":
            left = self._own_job("leave", LEAVE_SECONDS)
            with closing(left), suppress(SessionLost):  # what counts is why the call failed
                gang = conduct(left) or gang
            if isinstance(gang.cause, Raised) and not gang.cause.lost_connection:
                warn(f"rank {gang.cause.rank} left its context after a failure: {gang.cause.text}")
        if self._crew.has_lost():
            self._stuck = gang.stuck
            self._leave_alone()

    def _own_job(self, stage: Stage, timeout: float | None, names: Any = None) -> Job:
        settings = replace(self._settings, timeout=timeout, gather=False)
        call = Call(set_in_main, (names or {},), {}, self._settings.ctx)
        going = self.names.for_call(NOTHING) if names else None
        job = Job(call, settings, self, RankedFuture(settings.world_size), stage, going)
        job.pack()
        return job

    def _leave_alone(self) -> None:
        """Leave both sides of the context in the caller, when the other ranks are dead."""
        if self._entry is not None:
            self._entry.held.leave_alone()
            self._entry.plan.side.close()

    def close(self) -> None:
        """Leave the context on all ranks and end them. Raises what leaving has raised."""
        if self._pid != os.getpid():  # a forked process has no part in it
            return
        try:
            if not (self.watch.closing or self._crew.has_lost()):
                self._run(self._own_job("leave", self._settings.timeout))
        finally:
            self.watch.close()
            self.names = Names()  # whoever keeps the session keeps no variables
            children = self._settings.caller_rank is None
            (self._leave_alone if children else self._leave_here)()

    def _leave_here(self) -> None:
        """Leave no group in the caller: that of ranks that have died, or one that a call made."""
        with turn("a session's end", None), as_before(keep_group=True):
            self._leave_alone()
            self._own_group.end()
