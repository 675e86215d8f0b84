"""From a call to the result of its gang: prepare, run here or apart, resolve the future.

"Here" means with the calling thread as a rank; "apart" means that every rank is a child and a
thread of the executor's pool supervises.
"""

from __future__ import annotations

import contextvars
from concurrent.futures import CancelledError, Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from rankexec._future import RankedFuture
from rankexec._gang.call import Call, make_context
from rankexec._gang.caller import CallerRank
from rankexec._gang.failures import result_of
from rankexec._gang.gang import Gang
from rankexec._gang.interrupts import Interrupts
from rankexec._gang.plan import Plan, prepare
from rankexec._gang.restore import as_before, turn
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import Packed
from rankexec._settings import Settings
from rankexec._slots import Slots
from rankexec.launchers import Launcher

__all__ = ("Job", "run_apart", "run_here")


@dataclass
class Job:
    """One call, what it runs with, and its future."""

    call: Call
    settings: Settings
    slots: Slots
    launcher: Launcher
    future: RankedFuture[Any]
    packed: Packed | None = None

    def pack(self) -> None:
        """Pack the call for the children, once. Raises NotShippable."""
        if self.settings.world_size > 1 or self.settings.caller_rank is None:
            self.packed = pack_call(self.call, self.settings.by_value)

    def prepare(self, context: AbstractContextManager[Any], devices: list[str] | None) -> Plan:
        """Make the gang's plan; from here on the future shows its ranks."""
        plan = prepare(self.packed, self.settings, devices, self.launcher, context)
        self.future.ranks = plan.infos
        return plan

    def close(self) -> None:
        """Give back what was packed. The children have it, or will never be."""
        if self.packed is not None:
            self.packed.close()


def run_here(job: Job, pool: Executor) -> None:
    """Run a gang with this thread as one of its ranks; its future is done afterwards.

    Raises KeyboardInterrupt, and nothing else: the rest is the future's.
    """
    job.future.set_running_or_notify_cancel()
    try:
        with ExitStack() as stack:
            name = getattr(job.call.fn, "__name__", repr(job.call.fn))
            stack.enter_context(turn(name, job.settings.timeout))
            interrupts = Interrupts()
            stack.enter_context(interrupts.standing())
            stack.enter_context(as_before())
            gang = _conduct(job, interrupts, pool)
        result = result_of(gang, job.settings, job.future.ranks)
    except BaseException as error:
        job.future._settle(error=error)
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        job.future._settle(result)
    finally:
        job.close()


def _conduct(job: Job, interrupts: Interrupts, pool: Executor) -> Gang:
    """Start the gang, be its rank, and return it when it is settled, whatever became of it."""
    gang: Gang | None = None
    failure: BaseException | None = None
    holding = ExitStack()
    job.launcher.lease()
    holding.callback(job.launcher.release)
    try:
        try:
            interrupts.allow()
            devices = holding.enter_context(job.slots.taken(job.settings.world_size))
            context = make_context(job.call.ctx)
            plan = job.prepare(context, devices)
            holding.enter_context(plan.side)
            rank = CallerRank(plan.caller_rank or 0)
            interrupts.defer()  # a gang that exists is supervised
            gang = _start(Gang(plan, interrupts, rank), holding, pool)
            job.future._ends_with(partial(gang.end, CancelledError()))  # from another thread
            interrupts.allow()
            gang.go.wait()
            gang.left(_be_rank(rank, job.call, context, plan, gang))
            gang.settled.wait()
        except BaseException as error:
            failure = error
        interrupts.defer()
    except KeyboardInterrupt as error:  # it came between the two lines above
        failure = error
        interrupts.defer()
    if gang is None:
        holding.close()
    elif failure is not None:
        gang.end(failure)
        gang.left(None)
        gang.settled.wait()
    if interrupts.pending:
        # The one that went through the user's function shows where that was.
        raised = gang.caller_error if gang is not None else None
        raise raised if isinstance(raised, KeyboardInterrupt) else KeyboardInterrupt
    if failure is not None:
        raise failure
    return gang  # type: ignore[return-value]  # without a gang there is a failure


def _be_rank(
    rank: CallerRank, call: Call, context: AbstractContextManager[Any], plan: Plan, gang: Gang
) -> BaseException | None:
    environment, info = plan.environments[rank.number], plan.infos[rank.number]
    return rank.run(call, context, environment, plan.imports, gang.report, info)


def _start(gang: Gang, holding: ExitStack, pool: Executor) -> Gang:
    try:
        # The context of this thread: a notebook's output finds its cell by it.
        pool.submit(contextvars.copy_context().run, _supervise, gang, holding)
    except BaseException:  # no thread to be had
        gang.reap()
        raise
    return gang


def _supervise(gang: Gang, holding: ExitStack) -> None:
    with holding:
        gang.supervise()
        gang.dismiss()
        gang.reap()


def run_apart(job: Job) -> None:
    """Run a gang whose ranks are all children, and resolve its future (in a pool thread)."""
    with job.slots.taken(job.settings.world_size) as devices:
        gang = _conduct_apart(job, devices)
        # Arguments and result are their user's from here on, and may be large: while the ranks end
        # nothing of ours holds them.
        del job.future, job.call
        if gang is not None:
            gang.reap()


def _conduct_apart(job: Job, devices: list[str] | None) -> Gang | None:
    """Run the gang until it is settled and its future done; None if there was none to run."""
    if not job.future.set_running_or_notify_cancel():
        return None
    gang: Gang | None = None
    try:
        plan = job.prepare(make_context(job.call.ctx), devices)
        gang = Gang(plan, Interrupts(), None)
        job.future._ends_with(partial(gang.end, CancelledError()))
        gang.supervise()
        gang.dismiss()
        result = result_of(gang, job.settings, job.future.ranks)
    except BaseException as error:
        job.future._settle(error=error)
    else:
        job.future._settle(result)
    return gang
