"""A session: a gang held open, for many calls in the same ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from rankexec._block import Block
from rankexec._checks import check_callable, check_map, check_outside, check_rank
from rankexec._future import RankedFuture, submitting
from rankexec._gang.call import Call, RankInfo
from rankexec._gang.main import note_main
from rankexec._gang.namespace import find_in_main, find_needed, set_in_main
from rankexec._gang.opened import Opened
from rankexec._gang.run import Job, run_here
from rankexec._gang.sets import NOTHING, Sets
from rankexec._map import LazyMap, run_ahead
from rankexec._notebook.cell import Source, run_source
from rankexec._settings import Settings
from rankexec._slots import Slots
from rankexec.launchers import Launcher

__all__ = ("Session",)

T = TypeVar("T")

_OF_ONE_CALL = ("by_value", "gather", "imports", "need", "output", "timeout")


class Session(Block):
    """Runs each call on the same living ranks, inside a context that is entered once.

    `RankedExecutor.session()` makes it. As with the executor, the calling thread itself runs its
    rank, if it has one, and `submit` then returns a finished future; else calls run in order, and
    one after another.

    Every rank has a namespace of its own, its `__main__` (the caller's rank: the caller's), that
    lasts from call to call. A name of the caller's `__main__` that a function reads travels when
    the ranks do not have it, or when the caller has bound it anew since; else it is theirs, as they
    have changed it. What the caller changes in place has to be pushed, or passed as an argument.

    When a call fails it is broken off on every rank, and the context is left, to be entered anew
    for the next call; processes and namespaces stay. When a rank is dead, or cannot be broken off
    within 2 s, all are ended: the next call raises `SessionLost`, and `restart()` starts new ones.

    Use it in a `with`, or end it with `close()`. It is also ended when nobody holds it any more, by
    its executor's `shutdown`, when the interpreter exits, and when the caller is killed.
    """

    _stays = "a session holds processes of the caller and cannot travel"

    def __init__(self, settings: Settings, slots: Slots, launcher: Launcher) -> None:
        self._settings = settings
        self._open = Opened(settings, slots, launcher)

    @property
    def ranks(self) -> list[RankInfo]:
        """By rank, pid, host and device, and the times of the last call."""
        return self._open.standing.infos

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> RankedFuture[T]:
        """Run `fn(*args, **kwargs)` on every rank.

        Args:
            fn: as for `RankedExecutor.submit`.
            *args: its arguments; the caller's rank gets them as they are, children get copies.
            **kwargs: its keyword arguments, likewise.

        Returns:
            With a `caller_rank` it is done; else it is pending or running, and can be cancelled.

        Raises:
            SessionLost: the ranks are gone.
            TypeError: `fn` is not callable.
            RuntimeError: after `close`, or with a `caller_rank` inside a rank.
            KeyboardInterrupt: Ctrl-C while the calling thread takes part; the call is broken off.
        """
        __tracebackhide__ = True  # notebooks and pytest show the user's frames
        return self._submit(self._settings, args, fn, kwargs)

    def _submit(
        self,
        settings: Settings,
        args: Iterable[Any],
        fn: Callable[..., Any],
        kwargs: dict[str, Any],
        sets: Sets = NOTHING,
    ) -> RankedFuture[Any]:
        __tracebackhide__ = True
        check_callable(fn)
        note_main(fn)
        check_outside(settings.caller_rank)
        standing = self._open.checked()
        call = Call(fn, tuple(args), kwargs, settings.ctx, find_needed(settings.need))
        future: RankedFuture[Any] = RankedFuture(settings.world_size)
        with submitting(future):
            going = standing.names.for_call(sets)
            job = Job(call, settings, standing, future, stage="hold", going=going, sets=sets)
            if job.try_to_pack():
                run = standing.queue if settings.caller_rank is None else run_here
                run(job)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results of one call for each item of `iterables`.

        As `RankedExecutor.map`; with a `caller_rank`, calls whose results nobody asks for are not
        run.
        """
        check_map(fn, timeout, chunksize, buffersize)
        self._open.checked()
        items = zip(*iterables, strict=False)
        run = partial(self._submit, fn=fn, kwargs={})
        if self._settings.caller_rank is None:
            return run_ahead(partial(run, self._settings), items, timeout, buffersize)
        return LazyMap(run, self._settings, items, timeout, lambda _: None, buffersize)

    def push(self, **names: Any) -> None:
        """Set names in every rank's namespace, the caller's own `__main__` included if it has one.

        Args:
            **names: the values; children get copies, but for what they have already.

        Raises:
            NotShippable: a value cannot travel.

        Warns:
            RuntimeWarning: the ranks have this very value under this name: what the caller has
                changed in it does not travel. Push a copy.
        """
        self._open.standing.names.warn_of_theirs(names)
        self.submit(set_in_main, names).result()
        self._open.standing.names.are_theirs(names)

    def pull(self, name: str, rank: int | None = 0) -> Any:
        """Return the value of a name in a rank's namespace.

        Args:
            name: the name.
            rank: the rank; None: a list of every rank's.

        Raises:
            NameError: the rank has no such name.
            NotShippable: the value cannot travel; the session goes on.
            TypeError, ValueError: a wrong argument.

        Warns:
            RuntimeWarning: with a later call that takes it along under this very name: the copy
                replaces what the ranks have.
        """
        size = self._settings.world_size
        if not isinstance(name, str):
            raise TypeError(f"name takes a string, got {name!r}")
        check_rank("rank", rank, size)
        settings = replace(self._settings, gather=True)
        found = self._submit(settings, (name, rank), find_in_main, {}).result()
        asked = range(size) if rank is None else (rank,)
        for number in asked:
            if not found[number]:
                raise NameError(f"rank {number} has no {name!r}")
        values = [found[number][0] for number in asked]
        self._open.standing.names.pulled(name, values)
        return values if rank is None else values[0]

    def run_cell(self, source: str) -> Any:
        """Run source code on every rank, in its namespace. No variable of the caller travels.

        Args:
            source: Python statements, as in a notebook's cell, without magics.

        Returns:
            The last expression's value on rank 0, or what the session gathers; None if the source
            does not end with an expression.

        Raises:
            SyntaxError: it is no Python; nothing was run.
            BaseException: what a rank raised.
        """
        if not isinstance(source, str):
            raise TypeError(f"source takes a string, got {source!r}")
        self._open.cells += 1
        cell = Source(source, f"<cell {self._open.cells}>", f"<cell {self._open.cells}>")
        return self._submit_setting(cell.sets(), run_source, cell).result()

    def _submit_setting(self, sets: Sets, fn: Callable[..., T], *args: Any) -> RankedFuture[T]:
        """Submit a function that sets names of `__main__` which its code does not tell."""
        __tracebackhide__ = True
        return self._submit(self._settings, args, fn, {}, sets)

    def options(self, **overrides: Any) -> Session:
        """Return the same session with other settings for its calls.

        Args:
            **overrides: by_value, gather, imports, need, output, timeout, as the executor takes
                them.

        Raises:
            TypeError: another option: the ranks are there already.
        """
        for name in overrides:
            if name not in _OF_ONE_CALL:
                raise TypeError(f"a session's options are {', '.join(_OF_ONE_CALL)}; got {name!r}")
        derived = object.__new__(type(self))
        derived._settings = self._settings.changed(overrides)
        derived._open = self._open
        return derived

    def restart(self) -> None:
        """End the ranks, if they live, and start new ones, with empty namespaces.

        Calls that run or are pending come to their end first; `cancel()` one that never does.
        """
        self._open.restart()

    def close(self) -> None:
        """Run what is pending, leave the context on every rank, and end the ranks.

        Raises:
            BaseException: what leaving the context has raised.
        """
        self._open.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the session.

        Args:
            wait: return only when all is over.
            cancel_futures: cancel the calls that have not started yet.
        """
        self._open.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _cancel_all(self) -> None:
        self._open.cancel(even_running=True)
