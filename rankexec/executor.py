"""The executor: one `submit` is one gang."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from rankexec._block import Block
from rankexec._checks import check_callable, check_count, check_map, check_outside
from rankexec._future import RankedFuture
from rankexec._gang.call import Call, inside_rank
from rankexec._gang.main import note_main
from rankexec._gang.namespace import find_needed
from rankexec._map import LazyMap, run_ahead
from rankexec._settings import Settings, check_devices, check_fits, default_world_size
from rankexec._shared import Shared, check_launcher
from rankexec._slots import Slots
from rankexec.launchers import Launcher

if TYPE_CHECKING:
    from rankexec.session import Session

__all__ = ("RankedExecutor", "RankedFuture")

T = TypeVar("T")


class RankedExecutor(Block):
    """Runs a function on `world_size` ranked processes together; each `submit` is one gang.

    By default the calling thread itself runs rank 0: `submit` blocks, what `fn` does to its
    arguments is done to the caller's own objects, and the future that comes back is done. Such
    gangs run one at a time in a process. With `caller_rank=None` every rank is a child process,
    `submit` returns at once, and gangs run side by side.

    Args:
        world_size: ranks of a gang. None: the number of `devices`, else of visible GPUs, else of
            CPU cores that this process may use.
        ctx: a context manager, or a callable without arguments that makes one, entered around
            `fn` on every rank, for instance `TorchDDPCtx()`. A callable is called in the caller
            too, which may have a side of the context to hold.
        caller_rank: the rank that the calling thread runs, 0 to world_size-1, or None.
        gather: False: the future resolves to rank 0's value; True: to a list by rank; a callable:
            to what it makes of that list, in the caller.
        devices: GPU ids, as CUDA_VISIBLE_DEVICES takes them, that the gangs share out.
        max_gangs: gangs that may run at once with `caller_rank=None`. None: as many as fit on the
            devices, or on the CPU cores, and at least one.
        timeout: seconds that a gang may take; then its ranks are ended and `GangTimeout` carries
            their Python stacks. None: no limit.
        leave_timeout: seconds that a rank's process may take to end after its call; then it is
            killed, and a RuntimeWarning names what it waited for. None: no limit.
        need: names of the caller's `__main__` to set in every rank's, "a b" or ["a", "b"].
        imports: import statements, a string, that each rank runs before it unpacks the call.
        by_value: modules whose code travels with the call, as the caller has it, instead of being
            imported by each rank.
        output: what of the children's output is shown: "all", "caller" (nothing), a list of
            ranks, or a directory for one file each (rank2.log).
        env: environment variables for every rank, on top of the caller's and the rank's own.
        launcher: what starts the children; None: `LocalLauncher()`.

    Raises:
        TypeError, ValueError: a wrong argument, named, with what it takes.
    """

    _stays = (
        "a RankedExecutor holds processes of the caller and cannot travel; make one in the rank, "
        "with caller_rank=None"
    )

    def __init__(
        self,
        world_size: int | None = None,
        *,
        ctx: Any = None,
        caller_rank: int | None = 0,
        gather: bool | Callable[[list[Any]], Any] = False,
        devices: Iterable[int | str] | None = None,
        max_gangs: int | None = None,
        timeout: float | None = None,
        leave_timeout: float | None = 60.0,
        need: str | Iterable[str] = "",
        imports: str = "",
        by_value: Iterable[ModuleType] = (),
        output: Any = "all",
        env: dict[str, str] | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        names = check_devices(devices)
        self._settings = Settings.checked(
            world_size=default_world_size(names) if world_size is None else world_size,
            ctx=ctx,
            caller_rank=caller_rank,
            gather=gather,
            timeout=timeout,
            leave_timeout=leave_timeout,
            need=need,
            imports=imports,
            by_value=by_value,
            output=output,
            env=env,
        )
        check_fits(self._settings.world_size, names)
        check_count("max_gangs", 1 if max_gangs is None else max_gangs)
        check_launcher(launcher)
        gangs = max_gangs or max(1, default_world_size(names) // self._settings.world_size)
        wanted = getattr(ctx, "preload", ())  # by TorchDDPCtx; or something else by that name
        self._shared = Shared(Slots(names), gangs, launcher, wanted)

    @property
    def _max_workers(self) -> int:
        """Gangs that can run at once; libraries that take an executor read this."""
        return self._shared.max_gangs

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> RankedFuture[T]:
        """Run `fn(*args, **kwargs)` on every rank of a new gang.

        Args:
            fn: any callable; functions, lambdas and classes of `__main__` or of a notebook travel
                with what they use.
            *args: its arguments; the caller's rank gets them as they are, children get copies.
            **kwargs: its keyword arguments, likewise.

        Returns:
            With a `caller_rank` it is done; else it is pending or running.

        Raises:
            TypeError: `fn` is not callable.
            RuntimeError: after `shutdown`, or with a `caller_rank` inside a rank.
            KeyboardInterrupt: Ctrl-C while the calling thread takes part; the gang is ended.
        """
        __tracebackhide__ = True  # notebooks and pytest show the user's frames
        return self._submit(self._settings, args, fn, kwargs)

    def _submit(
        self,
        settings: Settings,
        args: Iterable[Any],
        fn: Callable[..., Any],
        kwargs: dict[str, Any],
    ) -> RankedFuture[Any]:
        __tracebackhide__ = True
        check_callable(fn)
        note_main(fn)
        self._shared.check_open()
        check_outside(settings.caller_rank)
        inside = inside_rank() is not None
        if settings.caller_rank is not None or inside:
            self._shared.slots.check_reachable(settings.world_size, inside=inside)
        call = Call(fn, tuple(args), kwargs, settings.ctx, find_needed(settings.need))
        return self._shared.submit(call, settings)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results of one gang for each item of `iterables`.

        With a `caller_rank`, each gang runs when its result is asked for; `shutdown(wait=True)`
        runs those still held, `buffersize` at most. Without, all, or that many, are submitted now.

        Args:
            fn: a callable that takes one item of each iterable.
            *iterables: read now; with `buffersize`, as needed.
            timeout: seconds from this call in which a result has to be there.
            chunksize: checked and ignored: one item is one gang.
            buffersize: gangs to submit ahead.

        Raises:
            TypeError, ValueError: a wrong argument.
            TimeoutError: from the iterator, when the result is not there in time.
        """
        check_map(fn, timeout, chunksize, buffersize)
        self._shared.check_open()
        items, run = zip(*iterables, strict=False), partial(self._submit, fn=fn, kwargs={})
        if self._settings.caller_rank is None:
            return run_ahead(partial(run, self._settings), items, timeout, buffersize)
        started = self._shared.started
        return self._shared.hold(LazyMap(run, self._settings, items, timeout, started, buffersize))

    def options(self, **overrides: Any) -> RankedExecutor:
        """Return an executor with other settings and the same slots, launcher and shutdown.

        Args:
            **overrides: any argument of the constructor except `devices`, `max_gangs`, `launcher`.

        Raises:
            TypeError: an unknown option, or one that is shared.
        """
        known = [field.name for field in fields(Settings)]
        for name in overrides.keys() - known:
            raise TypeError(f"options takes {', '.join(known)}; got {name!r}")
        derived = object.__new__(type(self))
        derived._settings = self._settings.changed(overrides)
        check_fits(derived._settings.world_size, self._shared.slots.devices)
        derived._shared = self._shared
        return derived

    def session(self) -> Session:
        """Start a gang that is held open, and return the session: an executor of its calls.

        It holds its devices until it is closed.

        Raises:
            RuntimeError: after `shutdown`, or with a `caller_rank` inside a rank.
            BaseException: what entering the context has raised on a rank; nothing is left of it.
        """
        shared, settings = self._shared, self._settings
        shared.check_open()
        check_outside(settings.caller_rank)
        shared.slots.check_reachable(settings.world_size, inside=inside_rank() is not None)
        return shared.session(settings)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; run what is pending, then end every process.

        Args:
            wait: return only when all gangs are over and all their processes are gone.
            cancel_futures: cancel what has not started yet.
        """
        self._shared.shutdown(wait=wait, cancel_futures=cancel_futures)

    def terminate_workers(self) -> None:
        """End all ranks by SIGTERM, which they may handle for 30 s; shut down without waiting.

        As Python 3.14's process pool: gangs that run fail with `RankDied`, others are cancelled.
        """
        self._shared.stop(kill=False)

    def kill_workers(self) -> None:
        """The same by SIGKILL, and with all that ranks have started."""
        self._shared.stop(kill=True)

    def _cancel_all(self) -> None:
        self._shared.cancel_all()
