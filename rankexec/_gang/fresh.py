"""New processes for every gang, and a thread of the executor's pool to supervise it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from rankexec._gang.call import make_context
from rankexec._gang.caller import CallerRank
from rankexec._gang.crew import Crew
from rankexec._gang.deferred import Deferred
from rankexec._gang.gang import Gang
from rankexec._gang.leaving import Leaving
from rankexec._gang.plan import prepare
from rankexec._gang.restore import as_before
from rankexec._gang.run import Job, Part, conduct_apart
from rankexec._gang.surroundings import surroundings
from rankexec._slots import Slots, cpu_count
from rankexec.launchers import Launcher

__all__ = ("Fresh",)


class Fresh:
    """The processes of one gang. See `run.Processes`.

    Args:
        slots: what the gang takes its devices from.
        launcher: what starts the children.
        supervise: has another thread supervise a gang with a caller's rank, see `Supervisors`.
        leaving: the executor's gang whose ranks are ending.
        leave_timeout: seconds that this one's may take for that.
    """

    def __init__(
        self,
        slots: Slots,
        launcher: Launcher,
        supervise: Callable[..., None],
        leaving: Leaving,
        leave_timeout: float | None,
    ) -> None:
        self._slots = slots
        self._launcher = launcher
        self._have_supervised = supervise
        self._leaving = leaving
        self._leave_timeout = leave_timeout
        self._around = surroundings(cpu_count())  # another thread may start the gang
        self._crew: Crew | None = None
        self._devices: list[str] | None = None
        self._holding = ExitStack()

    def run_apart(self, job: Job) -> None:
        """Run a gang whose ranks are all children, and resolve its future (in a pool thread)."""
        with self._slots.taken(job.settings.world_size) as self._devices:
            gang = conduct_apart(job)
            # Arguments and result are their user's from here on, and may be large: while the ranks
            # end nothing of ours holds them.
            del job.future, job.call
            if gang is not None:
                gang.crew.reap(self._leave_timeout)

    def standing(self, _job: Job) -> AbstractContextManager[Any]:
        return as_before()

    def prepare(self, job: Job) -> Part:
        settings, holding = job.settings, self._holding
        if settings.caller_rank is not None:
            with Deferred():
                self._launcher.lease()
                holding.callback(self._launcher.release)
                self._devices = holding.enter_context(self._slots.taken(settings.world_size))
        context = make_context(job.call.ctx)
        infos, start = job.future.ranks, (self._devices, self._launcher, context)
        plan = prepare(job.packed, settings, *start, infos, self._around)
        holding.enter_context(plan.side)
        if settings.caller_rank is not None:
            self._leaving.wait(settings.timeout)  # it has the one thread of the pool
        return Part(plan, context, CallerRank(plan.seats[settings.caller_rank or 0]))

    def drop(self, job: Job) -> None:  # noqa: ARG002  # a session's need it
        self._holding.close()

    def crew(self) -> Crew:
        self._crew = Crew()
        return self._crew

    def end(self) -> None:
        if self._crew is not None:
            self._crew.stop(kill=True)

    def supervise(self, gang: Gang) -> None:
        self._leaving.begin(gang.crew)
        try:
            self._have_supervised(self.end, self._supervise, gang)
        except BaseException:  # no thread to be had
            gang.crew.reap(0.0)
            self._leaving.over(gang.crew)
            raise

    def _supervise(self, gang: Gang) -> None:
        with self._holding:
            try:
                gang.supervise()
                gang.crew.dismiss()
                gang.crew.reap(self._leave_timeout)
            finally:
                self._leaving.over(gang.crew)

    def settled(self, gang: Gang) -> None:
        gang.crew.dismiss()  # not sooner: their end would take the caller's core
