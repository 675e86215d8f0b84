"""Which guardian a rank needs: what one was started with, and its forks have for good.

A guardian that ranks are forked from has read the variables that its libraries read on import:
setting them after the fork does nothing. And whatever it starts runs as its user: ranks of a caller
that has become another one need a guardian of that user, not a fork that was root a moment before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ("Kind", "kind_of", "privileges")


class Kind(NamedTuple):
    """What is the same in all guardians that would do for a rank."""

    privileges: tuple[Any, ...]
    preload: tuple[str, ...] | None
    """None: ranks are not forked from it, and get their variables by themselves."""
    variables: frozenset[tuple[str, str]]


def kind_of(
    privileges: tuple[Any, ...], environment: Mapping[str, str], preload: Sequence[str] | None
) -> Kind:
    """Return it for a rank of that environment."""
    if preload is None:
        return Kind(privileges, None, frozenset())
    read = {k: v for k, v in environment.items() if _is_read_on_import(k)}
    return Kind(privileges, tuple(preload), frozenset(read.items()))


_PREFIXES = (
    "OMP_", "MKL_", "OPENBLAS_", "GOMP_", "KMP_", "TORCH", "PYTORCH", "PYTHON", "LD_",
)  # fmt: skip


def _is_read_on_import(name: str) -> bool:
    # The number of threads differs with the world size; a forked rank sets it by torch's function.
    # What a launcher of torch's tells its ranks is read when it is asked for.
    later = name == "OMP_NUM_THREADS" or name.startswith("TORCHELASTIC_")
    return name.startswith(_PREFIXES) and not later


def privileges() -> tuple[Any, ...]:
    """Return what this process may do: user, groups, capabilities, filters, and the root directory.

    All of it is handed down to what it starts, and none of it can be had back once it is given up.
    """
    calls = _from_calls()
    # At the limit of descriptors it cannot be read, and is what it was for that user.
    _known[calls] = lines = _from_status() or _known.get(calls, ())
    return _root(), calls, lines


_known: dict[tuple[str, ...], tuple[bytes, ...]] = {}


def _root() -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat("/")
        return found.st_dev, found.st_ino
    return None


def _from_status() -> tuple[bytes, ...]:
    try:
        descriptor = os.open(_STATUS, os.O_RDONLY)
    except OSError:
        return ()
    try:
        lines = os.read(descriptor, 1 << 16).split(b"\n")
    finally:
        os.close(descriptor)
    return tuple(line for line in lines if line.startswith(_LINES))


# The main thread's: it may give up capabilities alone, and a thread that starts gangs is older.
_STATUS = "/proc/self/status"
_LINES = (b"Uid:", b"Gid:", b"Groups:", b"Cap", b"NoNewPrivs:", b"Seccomp")


def _from_calls() -> tuple[str, ...]:
    names = ("getuid", "geteuid", "getgid", "getegid", "getgroups")
    return tuple(str(getattr(os, name)()) for name in names if hasattr(os, name))
