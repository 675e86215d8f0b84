"""What Python has no function for, asked of the C library by ctypes; nothing where there is none.

The handle is made once: a rank forked from the guardian has it already.
"""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ("become_subreaper", "collapse", "die_with_parent", "flush_streams")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE = 25


def _find(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # no such function here, no C library found so
        return lambda *_: None


_prctl, _fflush, _madvise = _find("prctl"), _find("fflush"), _find("madvise")


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
