"""What Python has no function for, asked of the C library by ctypes; nothing where there is none.

The handle is made once: a rank forked from the guardian has it already.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = (
    "become_subreaper",
    "collapse",
    "die_with_parent",
    "exit_begins_here",
    "exit_own",
    "flush_streams",
)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE = 25


def _find(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # no such function here, no C library found so
        return lambda *_: None


_prctl, _fflush, _madvise = _find("prctl"), _find("fflush"), _find("madvise")


def _find_exits() -> tuple[Any, Any, list[ctypes.c_void_p]] | None:
    """Return what registers an exit function, what runs them, and two such; None if not Linux."""
    try:
        held = ctypes.pythonapi if sys.platform == "linux" else None
        last = [ctypes.cast(getattr(held, name), ctypes.c_void_p) for name in ("_exit", "fflush")]
        return getattr(held, "__cxa_atexit"), getattr(held, "exit"), last  # noqa: B009  # not ours
    except AttributeError:
        return None


_exits = _find_exits()


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def collapse(address: int, size: int) -> None:
    """Have the kernel put this memory of ours into huge pages, if it can (Linux 6.1)."""
    _madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_COLLAPSE)


def flush_streams() -> None:
    """Write what C's own streams (stdio) still hold."""
    _fflush(None)


def exit_begins_here() -> None:
    """Have `exit_own` in this process (a fork) run no exit function that is registered by now.

    They run last in, first out: one that ends the process comes before all that was there. HDF5,
    for instance, writes what it holds by an exit function; those of libraries that the guardian has
    loaded would take apart memory that the fork shares with it, and threads that it does not have.
    """
    if _exits is not None:
        register, _, last = _exits
        for function in last:
            register(function, None, None)


def exit_own() -> None:
    """End this process (0), after the exit functions of C libraries that it has loaded itself.

    The interpreter's lock is held: what other threads would do now, they would do to libraries that
    are being taken apart. Returns where there is no way to run only these.
    """
    if _exits is not None:
        _exits[1](0)
