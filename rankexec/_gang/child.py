"""A child as a rank: one call, from its unpacking to the report that its context is left."""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from rankexec._gang import (
    deep,
    descriptors,
    frameworks,
    gradients,
    namespace,
    outcomes,
    output,
    schedules,
    tensors,
)
from rankexec._gang.bound import Bound, values_of
from rankexec._gang.breaking import Breakable, GangEnded
from rankexec._gang.call import Call, RankInfo, Seat, Stage, make_context, perform
from rankexec._gang.channel import Channel
from rankexec._gang.environment import set_variables
from rankexec._gang.held import Ear
from rankexec._gang.modes import in_modes
from rankexec._gang.picklers import caller_classes, is_known_to_caller
from rankexec._gang.saving import ends_after_call
from rankexec._gang.sets import Kept, Sets
from rankexec._gang.wire import Packed, pack_result, unpack
from rankexec.errors import NotShippable

__all__ = ("ChildRank",)


class ChildRank:
    """This process while it runs a call. `ear` is there in a session."""

    def __init__(
        self,
        channel: Channel,
        ear: Ear | None,
        seat: Seat,
        info: RankInfo,
        wants_value: bool,
        stage: Stage,
        sets: Sets,
    ) -> None:
        self._channel = channel
        self._ear = ear
        self._seat = seat
        self._info = info
        self._wants_value = wants_value
        self._stage = stage
        self._sets = sets
        self._bound: Bound | None = None
        self._arguments = False
        self._succeeded = False

    def run(self, imports: str, packed: Packed | None) -> None:
        """Run the call, whatever it comes to; at the end the caller is told."""
        if sys.breakpointhook is sys.__breakpointhook__:
            sys.breakpointhook = _no_breakpoint
        tensors.is_rank(self._seat.local_rank, self._seat.local_world_size)
        if self._ear is None:
            ends_after_call()
            leaving = self._perform(imports, packed, None)
        else:
            # A session whose context is entered anew has a new port, and a new store.
            set_variables(self._seat.environment())
            with self._ear.hearing(self._seat) as rank:
                leaving = self._perform(imports, packed, rank)
        output.flush()  # before "left": the caller reads what is there, then resolves the future
        if leaving is None:
            self._channel.send("left", (self._info, self._kept()))
        else:
            self._send("left", leaving, time.monotonic(), self._kept())
        if self._ear is not None and self._arguments and not self._succeeded:
            gc.collect()

    def _perform(
        self, imports: str, packed: Packed | None, rank: Breakable | None
    ) -> BaseException | None:
        try:
            ear = self._ear
            call = _unpack_call(imports, packed, ear)
            self._arguments = bool(call.args or call.kwargs)
            self._bound = Bound(self._sets.possible) if ear else None
            context = ear.hold(call.ctx, self._stage) if ear else make_context(call.ctx)
        except BaseException as error:
            self._report(error, None)
            return None
        self._info.ready = time.monotonic()
        self._channel.send("ready", (self._info, None))
        if (self._ear or self._channel).receive()[0] != "go":
            return None
        frameworks.enter()
        with in_modes(call.modes):
            if rank is None:
                return perform(call, context, nullcontext(), self._report, self._info)
            with rank.standing(context):
                return perform(call, context, rank, self._report, self._info)

    def _report(self, error: BaseException | None, value: Any) -> None:
        self._succeeded = error is None
        if isinstance(error, GangEnded):  # the caller knows
            return
        output.flush()
        when = self._info.fn_left or time.monotonic()
        if error is not None:
            self._send("raised", error, when)
            return
        try:
            packed = pack_result(value if self._wants_value else None, caller_classes())
        except (Exception, SystemExit) as refused:  # the user's __reduce__ may raise anything
            # A session goes on: its ranks have done what they were to do.
            kind = "raised" if self._stage == "once" else "refused"
            self._send(kind, _not_shippable(self._info.rank, value, refused), when)
        else:
            self._channel.send("returned", (self._info, when), packed)
            packed.close()

    def _kept(self) -> Kept:
        """Return, in a session, what this rank has since the call.

        What only cycles hold is collected first: see `Arrived.dropped`. In a process that was
        forked that may take a second, and a caller waits for little more when a call has failed:
        then it is collected after this.
        """
        if self._ear is None or self._stage == "leave":  # nobody reads it
            return Kept()
        arrived, bound = self._ear.arrived, self._names_bound()
        signs = arrived.made(bound) if self._sets.in_caller else {}
        collect = self._arguments and self._succeeded
        return Kept(bound, signs, arrived.dropped(collect=collect))

    def _names_bound(self) -> list[str]:
        """Return the names that the call has bound in `__main__`."""
        if self._bound is None:
            return []
        # Of these nobody sees it if their values are what they were.
        certain = values_of(self._sets.certain) if self._succeeded else ()
        return [*self._bound.names(), *(name for name, _ in certain)]

    def _send(self, kind: str, error: BaseException, when: float, more: Any = None) -> None:
        packed = _pack_raised(self._info.rank, when, error)
        self._channel.send(kind, (self._info, more), packed)
        packed.close()


def _no_breakpoint(*args: Any, **kwargs: Any) -> Any:
    """Be `breakpoint()`: pdb would read from no terminal, and raise BdbQuit."""
    if "PYTHONBREAKPOINT" in os.environ:  # another debugger, or none
        return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100  # the user asks for it
    rank = os.environ.get("RANK")
    raise RuntimeError(
        f"breakpoint() on rank {rank}, a child, which has no terminal: RankedExecutor(..., "
        f"caller_rank={rank}) runs it in the calling process"
    )


def _not_shippable(rank: int, value: Any, refused: BaseException) -> NotShippable:
    what = f"the result of rank {rank} (a {type(value).__name__})"
    advice = "return plain data: numbers, arrays, a state_dict"
    if isinstance(refused, OSError):  # a limit of descriptors, or of a file's size
        advice = "the system refused, whatever the result is"
    why = "" if isinstance(refused, SystemExit) else str(refused)
    return NotShippable(what, why or repr(refused), advice)


def _unpack_call(imports: str, packed: Packed | None, ear: Ear | None) -> Call:
    # First the imports: libraries patch classes on import, and unpickling needs the patched ones.
    namespace.run_imports(imports)
    if packed is None:
        raise EOFError("a call came without its content")
    try:
        with descriptors.arriving(packed.boxes):
            if ear is None or packed.first is None:
                call: Call = unpack(packed)
            else:
                call = unpack(packed, partial(ear.arrived.load, first=packed.first))
    except ModuleNotFoundError as error:
        raise _not_importable(error) from error
    finally:
        packed.close()
    namespace.set_in_main(call.needed)
    schedules.amend(call.amendments)
    deep.take_limit(call.recursion_limit)
    gradients.take_hook_id(call.hook_id)
    return call


def _not_importable(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return what to do about a module that the caller has loaded by its path, say."""
    text = (
        f"{error.msg} in a rank; by_value=[module] sends the code of one that only the caller has"
    )
    return ModuleNotFoundError(text, name=error.name, path=error.path)


def _pack_raised(rank: int, when: float, error: BaseException) -> Packed:
    """Pack a description that always unpacks, and within it, apart, the exception if possible."""
    raised = outcomes.describe(rank, when, error)
    inner: Packed | None = None
    if is_known_to_caller(type(error)):
        with suppress(Exception, SystemExit):  # then the caller gets RankRaised, with all texts
            inner = pack_result(error.with_traceback(None), caller_classes(), inline=True)
    return pack_result((replace(raised, exception=None), inner), caller_classes())
