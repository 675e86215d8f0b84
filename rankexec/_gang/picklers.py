"""The picklers: cloudpickle's C pickler, our reducers before it, dill behind it.

cloudpickle's tables of dynamic classes are private to it (3.1); this is the only file that reads
them.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from rankexec._gang import reducers

__all__ = (
    "CallPickler",
    "DillPickler",
    "Keep",
    "ResultPickler",
    "caller_classes",
    "is_known_to_caller",
)


def caller_classes() -> frozenset[str]:
    """Return the ids of the classes that cloudpickle has rebuilt in this process so far."""
    return frozenset(_cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.keys())


def is_known_to_caller(kind: type) -> bool:
    """Return (in a rank) whether the caller can have this class: importable, or sent by it."""
    tracked = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(kind)
    if tracked is not None:
        return tracked in caller_classes()
    return bool(_cloudpickle._should_pickle_by_reference(kind))


Keep = Callable[[pickle.PickleBuffer], bool]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's C pickler, with our table of reducers asked first, once per type."""

    def __init__(self, file: io.BytesIO, keep: Keep) -> None:
        super().__init__(file, protocol=5, buffer_callback=keep)
        self._reducer_of: dict[type, reducers.Reducer | None] = {}

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        try:
            reducer = self._reducer_of[cls]
        except KeyError:
            reducer = self._reducer_of[cls] = reducers.choose(cls)
        if reducer is not None:
            reduced = reducer(obj)
            if reduced is not NotImplemented:
                return reduced
        return super().reducer_override(obj)


class CallPickler(_Pickler):
    """Functions of the caller's `__main__` get the rank's `__main__` as their globals.

    So names set there by `need=` and `imports=` are found, and functions see one another.
    """

    def __init__(self, file: io.BytesIO, keep: Keep) -> None:
        super().__init__(file, keep)
        self._main_globals = sys.modules["__main__"].__dict__
        self.globals_ref[id(self._main_globals)] = _MainGlobals(__name__="__main__")


class DillPickler(CallPickler):
    """The second attempt: what cloudpickle refuses is given to dill, object by object.

    Slower, as each object's own `__reduce_ex__` is tried first; only made after a refusal.
    """

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        by_name = isinstance(obj, (type, types.FunctionType))
        if reduced is not NotImplemented or by_name or type(obj) in self.dispatch_table:
            return reduced
        try:
            obj.__reduce_ex__(5)
        except TypeError:
            if type(obj) in _LOCKS:  # dill's arrive as they are, held perhaps, and hang the rank
                return _LOCKS[type(obj)], ()
            import dill  # takes longer to import than all of rankexec

            return dill.loads, (dill.dumps(obj),)
        return NotImplemented


_LOCKS = {type(make()): make for make in (threading.Lock, threading.RLock)}
"""By type, what makes a new one: whoever holds a lock of the caller is not in the rank."""


class _MainGlobals(dict):  # type: ignore[type-arg]  # stands for a dict, holds nothing
    """Arrives as the namespace of the receiver's `__main__`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _receivers_main, ()


def _receivers_main() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


class ResultPickler(_Pickler):
    def __init__(self, file: io.BytesIO, keep: Keep, of_caller: frozenset[str]) -> None:
        super().__init__(file, keep)
        self._of_caller = of_caller

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            tracked = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(obj)
            if tracked in self._of_caller:
                return _callers_class, (tracked,)
        return super().reducer_override(obj)


def _callers_class(tracked: str) -> type:
    return _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracked]  # type: ignore[no-any-return]  # untyped
