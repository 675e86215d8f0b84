"""mpify's functions: its names, signatures and meaning, each call a gang of RankedExecutor.

    from rankexec.mpify import ranch, in_torchddp    # was: from mpify import ...

The page "Coming from mpify" says what is different.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from difflib import get_close_matches
from functools import wraps
from operator import itemgetter
from typing import Any

from rankexec import contexts
from rankexec._checks import check_count
from rankexec._gang.call import inside_rank
from rankexec._gang.namespace import global_imports, import_star, keep_imports, parse_imports
from rankexec.executor import RankedExecutor

__all__ = ("TorchDDPCtx", "global_imports", "import_star", "in_torchddp", "ranch")

_ADDR, _PORT = "127.0.0.1", 29500
_ALIKE = 0.85
"""How like an option's name a keyword has to be, by difflib, to be taken for a slip."""


def ranch(
    nprocs: int | RankedExecutor,
    fn: Callable[..., Any],
    *args: Any,
    caller_rank: int | None = 0,
    gather: bool | Callable[[list[Any]], Any] = True,
    ctx: Any = None,
    need: str | Iterable[str] = "",
    imports: str = "",
    **kwargs: Any,
) -> Any:
    """Run `fn(*args, **kwargs)` on `nprocs` ranks; come back when every rank has ended.

    Args:
        nprocs: the number of ranks; or an executor, which then says how many, and whose devices,
            time limit, output, environment and launcher are used.
        fn: what each rank runs.
        *args: its arguments; the caller's rank gets them as they are, children get copies.
        caller_rank: the rank that the calling thread runs; None: none.
        gather: True: return the values of all ranks. False: that of the caller's rank, None without
            one. A callable: what it makes of the list.
        ctx: a context manager (or a callable that makes one) that each rank enters around `fn`.
        need: names of `__main__`, between spaces or commas, that each rank's is to have.
        imports: import statements that each rank runs before it unpacks the call. With a
            `caller_rank` the caller's `__main__` keeps what it had not yet.
        **kwargs: keyword arguments of `fn`.

    Returns:
        By `gather`: a list by rank, or one value.

    Raises:
        TypeError, ValueError: a wrong argument; a keyword that `fn` does not take.
        BaseException: whatever a rank has raised, see `RankedExecutor`.
    """
    _check_keywords(fn, kwargs, ("nprocs", "caller_rank", "gather", "ctx", "need", "imports"))
    settings = {"gather": gather, "ctx": ctx, "need": need, "imports": imports}
    return _run(nprocs, caller_rank, settings, fn, args, kwargs)


def _run(
    nprocs: int | RankedExecutor,
    caller_rank: int | None,
    settings: dict[str, Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    imports = parse_imports(settings["imports"])
    if settings["gather"] is False and caller_rank != 0:
        # A value that nobody asked for must not have to travel.
        settings["gather"] = False if caller_rank is None else itemgetter(caller_rank)
        fn = _kept_by(caller_rank, fn)
    with ExitStack() as stack:
        if isinstance(nprocs, RankedExecutor):
            given = {name: value for name, value in settings.items() if value not in (None, "")}
            executor = nprocs.options(caller_rank=caller_rank, **given)
        else:
            check_count("nprocs", nprocs)
            executor = RankedExecutor(nprocs, caller_rank=caller_rank, **settings)
            stack.enter_context(executor)
        if caller_rank is not None:
            keep_imports(imports)
        return _result(executor, fn, args, kwargs)


def _result(
    executor: RankedExecutor, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> Any:
    future = executor.submit(fn, *args, **kwargs)
    try:
        return future.result()
    except BaseException:  # Ctrl-C ends a gang of children, too
        future.cancel()
        raise
    finally:
        del future  # its exception holds this frame, and this frame the future


def _kept_by(rank: int | None, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn`, whose value stays on the one rank that is to have it."""
    if not callable(fn):
        return fn  # submit refuses it

    @wraps(fn, updated=())  # not what an instance holds: it travels with the instance
    def kept(*args: Any, **kwargs: Any) -> Any:
        value = fn(*args, **kwargs)
        return value if inside_rank() == rank else None

    return kept


def _check_keywords(fn: Any, kwargs: dict[str, Any], options: tuple[str, ...]) -> None:
    """Refuse keywords that `fn` does not take, and warn of those that look like our own."""
    code = getattr(fn, "__code__", None)
    if code is None:  # no function of Python's; it checks for itself
        return
    name = getattr(fn, "__qualname__", repr(fn))
    first, last = code.co_posonlyargcount, code.co_argcount + code.co_kwonlyargcount
    taken = code.co_varnames[first:last]
    for keyword in kwargs:
        if keyword in taken:
            continue
        if not code.co_flags & inspect.CO_VARKEYWORDS:
            raise TypeError(
                f"neither {name}() nor the call takes {keyword!r}: {name}() takes "
                f"{', '.join(taken) or 'no keyword'}; the call {', '.join(options)}"
            )
        if alike := get_close_matches(keyword, options, 1, _ALIKE):
            warnings.warn(
                f"{keyword!r} goes to {name}(); did you mean {alike[0]!r}?",
                RuntimeWarning,
                stacklevel=3,
            )


class TorchDDPCtx(contexts.TorchDDPCtx):
    """`rankexec.TorchDDPCtx` with mpify's arguments.

    A group that has all its ranks in one gang needs no address: the caller holds its store, on a
    port that the kernel chose. `addr` and `port` count if they are named, or if the group is larger
    than the gang; then its rank 0 listens there.

    Args:
        world_size: ranks of the whole group. None: this gang's.
        base_rank: the group's rank of this gang's rank 0.
        use_gpu: whether ranks use GPUs at all.
        addr: host name or address of the group's rank 0.
        port: TCP port of the group's rank 0, 1 to 65535.
        num_threads: torch's threads per rank, and OMP_NUM_THREADS.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    def __init__(
        self,
        *,
        world_size: int | None = None,
        base_rank: int = 0,
        use_gpu: bool = True,
        addr: str = _ADDR,
        port: int = _PORT,
        num_threads: int = 1,
    ) -> None:
        super().__init__(
            world_size=world_size,
            base_rank=base_rank,
            use_gpu=use_gpu,
            addr=addr,
            port=port,
            num_threads=num_threads,
        )

    def _address(self, ranks_here: int) -> tuple[str, int] | None:
        whole = self.world_size in (None, ranks_here) and not self.base_rank
        own = whole and (self.addr, self.port) == (_ADDR, _PORT)
        return None if own else super()._address(ranks_here)

    def _variables(self, rank: int, size: int, address: tuple[str, int] | None) -> dict[str, str]:
        found = super()._variables(rank, size, address)
        if self.num_threads is not None:
            found["OMP_NUM_THREADS"] = str(self.num_threads)
        return found


def in_torchddp(
    nprocs: int | RankedExecutor,
    fn: Callable[..., Any],
    *args: Any,
    world_size: int | None = None,
    base_rank: int = 0,
    ctx: Any = None,
    use_gpu: bool = True,
    need: str | Iterable[str] = "",
    imports: str = "",
    **kwargs: Any,
) -> Any:
    """Run `fn(*args, **kwargs)` on `nprocs` ranks of a torch.distributed group, the caller first.

    Args:
        nprocs: the number of ranks here, or an executor, as for `ranch`.
        fn: what each rank runs.
        *args: its arguments.
        world_size: ranks of the whole group, on all hosts. None: `nprocs`.
        base_rank: the group's rank of the caller.
        ctx: a context manager instead of
            `TorchDDPCtx(world_size=..., base_rank=..., use_gpu=...)`.
        use_gpu: whether ranks use GPUs at all.
        need: as for `ranch`.
        imports: as for `ranch`.
        **kwargs: keyword arguments of `fn`.

    Returns:
        What `fn` returned in the caller.

    Raises:
        TypeError, ValueError: a wrong argument; a keyword that `fn` does not take.
        BaseException: whatever a rank has raised, see `RankedExecutor`.
    """
    own = ("nprocs", "world_size", "base_rank", "ctx", "use_gpu", "need", "imports")
    _check_keywords(fn, kwargs, own)
    if ctx is None:
        ctx = TorchDDPCtx(world_size=world_size, base_rank=base_rank, use_gpu=use_gpu)
    settings = {"gather": False, "ctx": ctx, "need": need, "imports": imports}
    return _run(nprocs, 0, settings, fn, args, kwargs)
