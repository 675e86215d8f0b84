"""Checks of arguments that several functions take: what is wrong is named, with what it got."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from rankexec._gang.call import inside_rank

__all__ = (
    "check_callable",
    "check_count",
    "check_list",
    "check_map",
    "check_outside",
    "check_rank",
    "check_seconds",
    "check_started",
    "check_variables",
)

T = TypeVar("T")


def check_callable(fn: Any) -> None:
    """Raise TypeError unless `fn` can be called, and that is all there is to do."""
    if not callable(fn):
        raise TypeError(f"fn takes a callable, got {fn!r}")
    if iscoroutinefunction(fn) or iscoroutinefunction(type(fn).__call__):
        raise TypeError(
            f"fn takes a callable that returns when its work is done; {fn!r} is `async` and only "
            f"returns a coroutine, which nothing would run: submit(lambda: asyncio.run(main()))"
        )


def check_count(name: str, value: Any) -> None:
    """Raise unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes an int of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} takes an int of at least 1, got {value!r}")


def check_list(takes: str, values: Any, kind: type[T]) -> list[T]:
    """Return values as a list; raise TypeError unless they are several, and each of a kind.

    Args:
        takes: what an argument takes, for the message: "preload takes a list of module names".
        values: what it got; one string or one value is not several.
        kind: what each is to be.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{takes}, got {values!r}")
    found = list(values)
    for value in found:
        if not isinstance(value, kind):
            raise TypeError(f"{takes}, got {value!r} in it")
    return found


def check_map(fn: Any, timeout: Any, chunksize: Any, buffersize: Any) -> None:
    """Raise unless these are what `map` takes."""
    check_seconds("timeout", timeout)
    check_count("chunksize", chunksize)
    if buffersize is not None:
        check_count("buffersize", buffersize)
    check_callable(fn)


def check_outside(caller_rank: int | None) -> None:
    """Raise RuntimeError if this thread is to be a rank and is one already, or cannot be one."""
    if caller_rank is None:
        return
    if _is_patched():
        raise RuntimeError(
            f"gevent has patched what this process waits with: rank {caller_rank} in it could not "
            f"be broken off when another one fails; use caller_rank=None"
        )
    if (rank := inside_rank()) is not None:
        raise RuntimeError(
            f"this thread is rank {rank} of a gang already and cannot be rank {caller_rank} of "
            f"another; use an executor with caller_rank=None here"
        )


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    waiting = ("time", "threading", "socket")
    return monkey is not None and any(map(monkey.is_module_patched, waiting))


def check_started() -> None:
    """Raise RuntimeError while this process, a worker that was spawned, still imports its script.

    Whatever starts there is started once more by each of its own processes, without an end.
    """
    for library in ("multiprocessing", "multiprocess"):
        process = sys.modules.get(f"{library}.process")
        if process is not None and getattr(process.current_process(), "_inheriting", False):
            raise RuntimeError(
                "a gang was about to be started by a process that multiprocessing has spawned and "
                "that still imports the script; put what the script does, but not what it "
                "defines, below: if __name__ == '__main__':"
            )


def check_rank(name: str, rank: Any, world_size: int) -> None:
    """Raise unless `rank` is one of a gang's ranks, or None."""
    if isinstance(rank, bool) or not isinstance(rank, (int, type(None))):
        raise TypeError(f"{name} takes an int from 0 to {world_size - 1}, or None, got {rank!r}")
    if rank is not None and not 0 <= rank < world_size:
        raise ValueError(f"{name} takes 0 to {world_size - 1}, or None, got {rank}")


def check_seconds(name: str, value: Any) -> None:
    """Raise unless `value` is a number or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise TypeError(f"{name} takes seconds, or None, got {value!r}")
    try:
        float(value or 0)
    except OverflowError:
        raise ValueError(f"{name} takes seconds that a float can hold, got {value!r}") from None


def check_variables(what: str, variables: Any, *, unset: bool = False) -> dict[str, Any]:
    """Return environment variables as they are; with `unset`, a value may be None."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"{what} a mapping of strings to strings, got {variables!r}")
    for name, value in variables.items():
        text = "" if unset and value is None else value
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError(f"{what} strings, got {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(
                f"{what} names without '=' and no null characters, got {name!r}: {value!r}"
            )
        try:
            os.fsencode(name + text)
        except UnicodeEncodeError:
            raise ValueError(
                f"{what} text that the environment can hold, got {name!r}: {value!r}"
            ) from None
    return dict(variables)
