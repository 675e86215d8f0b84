"""The values that cross between caller and ranks: plain, picklable, without behaviour of their own.

The exception is `perform`, the one way in which a rank runs its call, in a child and in the caller.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rankexec._gang.deferred import Interruptible
from rankexec._gang.gradients import next_hook_id
from rankexec._gang.modes import Modes, modes
from rankexec._gang.schedules import Amendment
from rankexec._torch import peak_gpu_memory

__all__ = (
    "Call",
    "Died",
    "Outcome",
    "Raised",
    "RankInfo",
    "Returned",
    "Seat",
    "Stage",
    "inside_rank",
    "make_context",
    "perform",
)


@dataclass(frozen=True)
class Seat:
    """One rank's place in its gang."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    local_rank: int
    local_world_size: int
    group_rank: int = 0
    device: str | None = None
    """The GPU of this rank, as CUDA_VISIBLE_DEVICES names it; None if it has none of its own."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What else the rank finds in its environment; wins over the names below."""

    def environment(self) -> dict[str, str]:
        """Return torchrun's variables for this rank, all of them strings.

        With fewer, popular trainers train as independent processes and say nothing.
        """
        own = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.group_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
            # By it torch and Lightning tell that a launcher has started the ranks. Without it
            # Lightning trains on with too few ranks, and removes WORLD_SIZE when it is done.
            "TORCHELASTIC_RUN_ID": "rankexec",
        }
        if self.device is None:
            own["ACCELERATE_USE_CPU"] = "true"
        return {**own, **self.variables}


@dataclass
class Call:
    """What every rank of a gang runs."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ctx: Any = None
    """A context manager, or a callable without arguments that makes one, or None."""
    needed: dict[str, Any] = field(default_factory=dict)
    """Names to set in the rank's `__main__` (`need=`)."""
    amendments: list[Amendment] = field(default_factory=list)
    """What the caller's schedulers have set in optimizers that the ranks of a session have."""
    recursion_limit: int = field(default_factory=sys.getrecursionlimit)
    """The caller's."""
    modes: Modes | None = field(default_factory=modes)
    """Gradients, inference mode and autocast of the calling thread."""
    hook_id: int = field(default_factory=next_hook_id)
    """Of torch's hooks, in the caller: those that travel have smaller ones."""


@dataclass
class Returned:
    """`fn` came back on this rank.

    `value` is what it returned, if anybody asked for it.
    """

    rank: int
    when: float
    value: Any = None


@dataclass
class Raised:
    """`fn`, the context or the unpacking of the call raised on this rank.

    `when` is CLOCK_MONOTONIC of its host, in seconds, at the moment it was caught.
    """

    rank: int
    when: float
    exception: BaseException | None
    type_name: str
    text: str
    traceback_text: str
    lost_connection: bool = False
    """Whether it only says that a peer went away, which is a consequence and never the cause."""


@dataclass
class Died:
    """The process of this rank ended before it had reported, or before it had left its context."""

    rank: int
    when: float
    pid: int
    host: str
    exitcode: int
    stderr_tail: str = ""


Outcome: TypeAlias = "Returned | Raised | Died"

Stage: TypeAlias = Literal["once", "hold", "leave"]
"""What a call does with its context: enter and leave it; enter it if need be and stay; leave it."""


@dataclass
class RankInfo:
    """What is known of one rank of a gang; fields are None until they are known.

    Times are seconds of CLOCK_MONOTONIC (`time.monotonic()` of that host).
    """

    rank: int
    pid: int | None = None
    host: str = ""
    device: str | None = None
    exitcode: int | None = None
    peak_memory: int | None = None
    """Largest resident size of the process, in bytes; known once it is reaped."""
    peak_gpu_memory: int | None = None
    """Most that torch has held of the rank's GPU until `fn` ended, in bytes; None without CUDA."""
    started: float | None = None
    ready: float | None = None
    context_entered: float | None = None
    fn_entered: float | None = None
    fn_left: float | None = None
    context_left: float | None = None
    reaped: float | None = None


def make_context(ctx: Any) -> AbstractContextManager[Any]:
    """Return the context manager that `ctx` is or makes; a null context for None."""
    if ctx is None:
        return nullcontext()
    if isinstance(ctx, type) or not hasattr(ctx, "__enter__"):
        with Interruptible():
            ctx = ctx()
    if not (hasattr(ctx, "__enter__") and hasattr(ctx, "__exit__")):
        raise TypeError(f"ctx made a {type(ctx).__name__}, which is no context manager")
    return ctx  # type: ignore[no-any-return]  # checked by its two methods, like `with` does


def perform(
    call: Call,
    context: AbstractContextManager[Any],
    inside: AbstractContextManager[Any],
    report: Callable[[BaseException | None, Any], None],
    info: RankInfo,
) -> BaseException | None:
    """Enter the context, run `fn`, report from inside the context, leave it.

    `inside` spans what may be broken off from outside: entering and `fn`, but never leaving.
    Returns what leaving the context raised. A context that swallows exceptions does not hide
    `fn`'s: that one is reported before the context is asked.
    """
    __tracebackhide__ = True
    error: BaseException | None = None
    value, outer, _here.rank = None, inside_rank(), info.rank
    try:
        with inside, Interruptible():
            context.__enter__()
            info.context_entered = info.fn_entered = time.monotonic()
            value = call.fn(*call.args, **call.kwargs)
    except BaseException as exc:  # every kind is an outcome of this rank, SystemExit too
        error = exc
    try:  # once more: what breaks a rank off may have come just when it was leaving, and kept it in
        inside.__exit__(None, None, None)
    except BaseException as exc:
        error = exc if error is None else error
        inside.__exit__(None, None, None)
    try:
        info.fn_left, info.peak_gpu_memory = time.monotonic(), peak_gpu_memory()
        try:
            report(error, value)
        finally:  # a Ctrl-C may come just now; what was entered is left nevertheless
            value = None
            if info.context_entered is not None:
                kind = type(error) if error is not None else None  # one may be false
                traceback = getattr(error, "__traceback__", None)
                with Interruptible():
                    context.__exit__(kind, error, traceback)
    except BaseException as exc:
        if exc is not error:
            return exc
    finally:
        info.context_left, _here.rank = time.monotonic(), outer
        error = traceback = None  # they hold this frame, and it them
    return None


_here = threading.local()


def inside_rank() -> int | None:
    """Return the rank that this thread is just now, or None."""
    return getattr(_here, "rank", None)
