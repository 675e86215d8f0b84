"""From a call to the result of its gang: run it here or apart, and resolve its future.

"Here" means with the calling thread as a rank; "apart" means that every rank is a child and
another thread supervises.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from rankexec._future import RankedFuture
from rankexec._gang.call import Call, Stage
from rankexec._gang.caller import CallerRank
from rankexec._gang.crew import Crew
from rankexec._gang.failures import result_of
from rankexec._gang.gang import Gang
from rankexec._gang.interrupts import Interrupts
from rankexec._gang.names import Going
from rankexec._gang.plan import Plan
from rankexec._gang.restore import turn
from rankexec._gang.sets import NOTHING, Sets
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import Packed
from rankexec._settings import Settings

__all__ = ("Job", "Part", "Processes", "conduct_apart", "conduct_here", "run_here")


@dataclass
class Job:
    """One call, what it runs with and on, and its future."""

    call: Call
    settings: Settings
    processes: Processes
    future: RankedFuture[Any]
    stage: Stage = "once"
    going: Going | None = None
    """Of a session, which names of `__main__` travel with the call; None: all that it reaches."""
    sets: Sets = NOTHING
    """Of a session, what the call sets."""
    packed: Packed | None = None

    def pack(self) -> None:
        """Pack the call for the children, once. Raises NotShippable."""
        if self.settings.world_size > 1 or self.settings.caller_rank is None:
            self.packed = pack_call(self.call, self.settings.by_value, self.going)
        if self.going is not None:
            self.going.packed()

    def try_to_pack(self) -> bool:
        """Pack; returns False if the future has the reason why it cannot be packed."""
        try:
            self.pack()
        except Exception as error:  # the future is where an executor's user looks for it
            self.future._settle(error=error.with_traceback(None))  # our frames would say nothing
            return False
        return True

    def close(self) -> None:
        """Give back what was packed. The children have it, or will never be."""
        if self.packed is not None:
            self.packed.close()


@dataclass
class Part:
    """What was decided about a gang before it starts."""

    plan: Plan
    context: AbstractContextManager[Any]
    """Of the caller's rank."""
    rank: CallerRank


class Processes(Protocol):
    """Where a job's gang gets its processes and its supervising thread: new ones, or a session's.

    The calls come in this order, in the thread that runs the job.
    """

    def run_apart(self, job: Job) -> None:
        """Run a job whose ranks are all children, in this thread, and resolve its future."""

    def standing(self, job: Job) -> AbstractContextManager[Any]:
        """Span the calling thread's part as a rank, and put its process back as it was."""

    def prepare(self, job: Job) -> Part:
        """Decide everything, and take what is shared out."""

    def drop(self, job: Job) -> None:
        """Give it back: there will be no gang."""

    def crew(self) -> Crew:
        """Return the processes, which are there or will be started."""

    def supervise(self, gang: Gang) -> None:
        """Have another thread supervise. Raises if there is none."""

    def settled(self, gang: Gang) -> None:
        """See to the processes of a gang that this thread has supervised."""

    def end(self) -> None:
        """End them by force, from any thread, whatever becomes of the call."""


def run_here(job: Job) -> None:
    """Run a gang with this thread as one of its ranks; its future is done afterwards.

    Raises KeyboardInterrupt, and nothing else: the rest is the future's.
    """
    __tracebackhide__ = True
    job.future.set_running_or_notify_cancel()
    began = False
    try:
        with ExitStack() as stack:
            name = getattr(job.call.fn, "__name__", repr(job.call.fn))
            interrupts = Interrupts()  # from here on one comes out of waits and the user's code
            stack.enter_context(interrupts.standing())
            stack.enter_context(turn(name, job.settings.timeout))
            stack.enter_context(job.processes.standing(job))
            began = True
            gang = conduct_here(job, interrupts)
        interrupts.raise_if_came()  # one may have come while a session's context was left
        result = result_of(gang, job.settings, job.future.ranks)
    except BaseException as error:
        if not began:  # it did not get its turn
            job.processes.drop(job)
        job.future._settle(error=error)
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        job.future._settle(result)
    finally:
        job.close()


def conduct_here(job: Job, interrupts: Interrupts) -> Gang:
    """Start the gang, be its rank, and return it when it is settled, whatever became of it."""
    __tracebackhide__ = True
    gang: Gang | None = None
    failure: BaseException | None = None
    try:
        part = job.processes.prepare(job)
        interrupts.rank = part.rank
        gang = _start(job, part, interrupts)
        job.future._is_of(gang)  # another thread may cancel it
        gang.go.wait()
        gang.left(_be_rank(part, job.call, gang))
        gang.settled.wait()
    except BaseException as error:
        failure = error
    if gang is None:
        job.processes.drop(job)
    elif failure is not None:
        gang.end(failure)
        gang.left(None)
        gang.settled.wait(heed=False)
    if interrupts.came:
        raised = gang and gang.caller_error  # it shows where the user's function was
        raise raised if isinstance(raised, KeyboardInterrupt) else KeyboardInterrupt
    if failure is not None:
        raise failure
    return gang  # type: ignore[return-value]  # without a gang there is a failure


def _start(job: Job, part: Part, interrupts: Interrupts) -> Gang:
    gang = Gang(job.processes.crew(), part.plan, interrupts, part.rank)
    job.processes.supervise(gang)
    return gang


def _be_rank(part: Part, call: Call, gang: Gang) -> BaseException | None:
    __tracebackhide__ = True
    plan, number = part.plan, part.rank.number
    environment, info = plan.environments[number], plan.infos[number]
    return part.rank.run(call, part.context, environment, plan.imports, gang.report, info)


def conduct_apart(job: Job) -> Gang | None:
    """Run a gang of children until it is settled and its future done; None: it was cancelled."""
    if not job.future.set_running_or_notify_cancel():
        job.processes.drop(job)
        return None
    gang: Gang | None = None
    try:
        part = job.processes.prepare(job)
        gang = Gang(job.processes.crew(), part.plan, Interrupts(), None)
        job.future._is_of(gang)
        gang.supervise()
        job.processes.settled(gang)
        result = result_of(gang, job.settings, job.future.ranks)
    except BaseException as error:
        if gang is None:
            job.processes.drop(job)
        job.future._settle(error=error)
    else:
        job.future._settle(result)
    return gang
