"""The picklers: cloudpickle's C pickler, our reducers before it, dill behind it.

cloudpickle's tables of dynamic classes are private to it (3.1); `dynamic` says who reads them.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from rankexec._gang import dynamic, modules, reducers, transient
from rankexec._gang.definitions import Definition
from rankexec._gang.main import main_namespace
from rankexec._gang.names import Going

__all__ = (
    "CallPickler",
    "DillPickler",
    "DillResultPickler",
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
        self._reducer_of: dict[type, reducers.Reducer | None] = dict.fromkeys(reducers.PLAIN)

    def _choose(self, cls: type) -> reducers.Reducer | None:
        return reducers.choose(cls)

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        try:
            reducer = self._reducer_of[cls]
        except KeyError:
            reducer = self._reducer_of[cls] = self._choose(cls)
        if reducer is not None:
            reduced = reducer(obj)
            if reduced is not NotImplemented:
                return reduced
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented or not isinstance(obj, type):
            return reduced
        return self._add_to_class(obj, reduced)

    def _add_to_class(self, cls: type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        return dynamic.add_to_class(cls, reduced, name_it=False)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple[Any, ...]:
        return dynamic.add_to_function(func, super()._dynamic_function_reduce(func))

    def _function_getnewargs(self, func: types.FunctionType) -> tuple[Any, ...]:
        # cloudpickle gives each function cells of its own: what one counts, another does not see.
        namespace = func.__globals__
        if id(namespace) not in self.globals_ref and (module := modules.by_value(namespace)):
            self.globals_ref[id(namespace)] = _Globals(
                __name__=module.__name__, __package__=module.__package__
            )
        return (*super()._function_getnewargs(func)[:-1], func.__closure__)


class CallPickler(_Pickler):
    """Functions of the caller's `__main__` get the rank's `__main__` as their globals.

    So names set there by `need=` and `imports=` are found, and functions see one another.
    """

    def __init__(self, file: io.BytesIO, keep: Keep, going: Going | None = None) -> None:
        super().__init__(file, keep)
        self.definitions: list[Definition] = []
        """What went by value."""
        self._going = going
        self._main_globals = main_namespace()
        self.globals_ref[id(self._main_globals)] = _Globals(__name__="__main__")

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple[Any, ...]:
        reduced = super()._dynamic_function_reduce(func)
        if self._going is None:
            return reduced
        if func.__globals__ is self._main_globals:
            _, _, (_, slots), *_ = reduced
            self._going.leave_out(func, slots["__globals__"])
        self.definitions.append(func)
        return dynamic.as_known(reduced, self._going.definitions.known(func))

    def _add_to_class(self, cls: type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        self.definitions.append(cls)
        only = None if self._going is None else self._going.definitions.known(cls).only
        return dynamic.add_to_class(cls, reduced, name_it=True, only=only)

    def _choose(self, cls: type) -> reducers.Reducer | None:
        return transient.choose_own(cls) or super()._choose(cls)


class _WithDill(_Pickler):
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
            import dill  # takes longer to import than all of rankexec

            return dill.loads, (dill.dumps(obj),)
        return NotImplemented


class DillPickler(_WithDill, CallPickler):
    """For calls."""


Refer: TypeAlias = Callable[[Any], "tuple[Any, ...] | None"]
"""Returns what stands for an object that the ranks of a session have; None for others."""


class Referring:
    """Before a CallPickler: what the ranks have does not travel again.

    Python code is asked for every number and string, which the C pickler otherwise does by itself;
    it is used only where there is something that the ranks have.
    """

    def __init__(self, file: io.BytesIO, keep: Keep, going: Going | None, refer: Refer) -> None:
        self._refer = refer
        super().__init__(file, keep, going)  # type: ignore[call-arg]  # CallPickler's

    def persistent_id(self, obj: Any) -> Any:
        return self._refer(obj)


class _ReferringCallPickler(Referring, CallPickler):
    pass


class _ReferringDillPickler(Referring, DillPickler):
    pass


def with_references(
    kind: type[CallPickler],
    file: io.BytesIO,
    keep: Keep,
    going: Going | None,
    refer: Refer | None,
) -> CallPickler:
    """Return a pickler of that kind; with `refer`, one that lets references stand for objects."""
    if refer is None:
        return kind(file, keep, going)
    referring = _ReferringDillPickler if kind is DillPickler else _ReferringCallPickler
    return referring(file, keep, going, refer)


class _Globals(dict):  # type: ignore[type-arg]  # stands for a dict, holds but names
    """Arrives as the namespace of the receiver's `__main__`, or of a module by value."""

    def __reduce__(self) -> tuple[Any, ...]:
        return modules.namespace_of, (self["__name__"], self.get("__package__"))


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


class DillResultPickler(_WithDill, ResultPickler):
    """For results."""


def _callers_class(tracked: str) -> type:
    return _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracked]  # type: ignore[no-any-return]  # untyped
