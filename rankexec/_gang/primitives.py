"""What multiprocessing shares between processes: locks, queues, pipes, values, of either twin.

They are pickled by their own library, as for a process that is being started (see `descriptors`).
Here is what its own pickler knows and ours does not, and what it would get wrong.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from rankexec._gang.descriptors import TWINS, beside
from rankexec._gang.refusals import Refused

__all__ = ("choose",)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they are of no such kind."""
    if issubclass(cls, _CTYPES):
        return _ctype
    for twin in TWINS:  # below, the __module__ of a class of Cython may be no string
        if not str(cls.__module__).startswith(twin.__name__):
            continue
        if issubclass(cls, getattr(_module(twin, "synchronize"), "SemLock", ())):
            return _semaphore
        if cls.__module__ in (f"{twin.__name__}.connection", f"{twin.__name__}.heap"):
            found: Callable[[Any], Any] | None = _own_reducers(twin).get(cls)
            return found and _while_packing(found)
    return None


_CTYPES = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)


def _module(twin: Any, name: str) -> Any:
    """Return a module of a twin, if it is loaded."""
    return sys.modules.get(f"{twin.__name__}.{name}")


def _own_reducers(twin: Any) -> Any:
    return twin.reduction.ForkingPickler._extra_reducers


def _while_packing(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Otherwise it would start a thread that serves the descriptor to whoever asks for it."""

    def reduce_for_ranks(obj: Any) -> Any:
        if beside() is None:
            raise Refused(*_ONE_WAY)
        return reduce(obj)

    return reduce_for_ranks


_ONE_WAY = "it travels to ranks only, and not back", "make it before, and pass it as an argument"


def _semaphore(lock: Any) -> Any:
    """What every lock, event, condition and queue has: a semaphore of the system, by its name."""
    if beside() is None:
        raise Refused(*_ONE_WAY)
    if sys.platform != "win32" and lock._semlock.name is None:
        raise Refused(
            "it was made for processes that this one forks, and no other can reach it",
            "make it, or the queue or event that has it, by multiprocessing.Manager() or "
            'multiprocessing.get_context("spawn")',
        )
    return NotImplemented


def _ctype(obj: Any) -> Any:
    """A Value or Array lies in memory that is shared; other data of ctypes does not."""
    wrapper = getattr(obj, "_wrapper", None)
    for twin in TWINS:  # below, the __module__ of a class of Cython may be no string
        heap, sharedctypes = _module(twin, "heap"), _module(twin, "sharedctypes")
        if (
            heap is not None
            and sharedctypes is not None
            and isinstance(wrapper, heap.BufferWrapper)
        ):
            if beside() is None:
                raise Refused(*_ONE_WAY)
            return sharedctypes.reduce_ctype(obj)
    return NotImplemented
