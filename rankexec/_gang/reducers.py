"""What people ship and cloudpickle loses or refuses: one reducer each, with its reason.

A reducer takes an object and returns what `__reduce__` returns. `choose` finds the one for a type;
None means that cloudpickle does it right.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import gc
import types
from collections.abc import Callable
from typing import Any

from rankexec._gang import (
    absent,
    arrays,
    dynamic,
    enums,
    hints,
    modules,
    primitives,
    refusals,
    storages,
    tensors,
    transient,
    whole,
)

Reducer = Callable[[Any], Any]

__all__ = ("Reducer", "choose")


def choose(cls: type) -> Reducer | None:
    """Return the reducer for instances of `cls`, or None where cloudpickle needs no help."""
    if (
        issubclass(cls, BaseException)
        and isinstance(cls.__init__, types.FunctionType)
        and not _reduces_itself(cls)
    ):
        return _exception
    return (
        _REDUCERS.get(cls)
        or arrays.choose(cls)
        or storages.choose(cls)
        or tensors.choose(cls)
        or whole.choose(cls)
        or primitives.choose(cls)
        or transient.choose(cls)
        or absent.choose(cls)
        or enums.choose(cls)
        or hints.choose(cls)
        or refusals.choose(cls)
    )


def _reduces_itself(cls: type) -> bool:
    own = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    return any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in own)


def _exception(exc: BaseException) -> Any:
    """An exception whose `__init__` takes other arguments than it stores in `args`.

    pickle rebuilds exceptions as `cls(*args)`, which raises TypeError for every class such as
    `def __init__(self, path): super().__init__(f"no {path}")`-with-two-arguments. Here `__init__`
    of the class is not called: `__new__`, then `__init__` of its builtin base, then the state.
    """
    reduced = exc.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or reduced[0] is not type(exc):
        return NotImplemented  # the class brings its own way
    _, args, *state = reduced
    return rebuild_exception, (type(exc), args, state[0] if state else None)


def rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any] | None
) -> BaseException:
    """Make an exception again without calling its own `__init__`."""
    exc = cls.__new__(cls, *args)
    builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    builtin.__init__(exc, *args)  # type: ignore[misc]  # sets errno, code, value, name, ...
    if state:
        exc.__setstate__(state)
    return exc


# --- what functions and classes of a notebook hold ---


def _cell(cell: types.CellType) -> Any:
    """A variable of an enclosing function: filled after it is made, as functions are.

    So functions that share it go on sharing it, also if it holds one of them.
    """
    try:
        content = cell.cell_contents
    except ValueError:
        return _empty_cell, ()
    return _empty_cell, (), (content,), None, None, _fill_cell


def _empty_cell() -> types.CellType:
    return types.CellType()


def _fill_cell(cell: types.CellType, content: tuple[Any]) -> None:
    (cell.cell_contents,) = content


def _cached(function: Any) -> Any:
    """An lru_cache goes by name, which ranks do not find in `__main__`. It arrives empty."""
    if dynamic.is_importable(function) or not hasattr(function, "cache_parameters"):
        return NotImplemented
    given = {k: v for k, v in vars(function).items() if k not in _OF_EVERY_CACHE}
    return _cache_again, (function.__wrapped__, function.cache_parameters()), given


_OF_EVERY_CACHE = frozenset({"__wrapped__", "cache_parameters"})


def _cache_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _mapping_proxy(proxy: types.MappingProxyType[Any, Any]) -> Any:
    """Singledispatch shows its registry through one: a copy would not see what is registered."""
    (mapping,) = gc.get_referents(proxy)
    return types.MappingProxyType, (mapping if type(mapping) is dict else dict(proxy),)


def _sentinel(obj: Any) -> Any:
    """Dataclasses compares them by identity, and so do parsers of arguments over its fields."""
    return _SENTINELS[type(obj)]


_SENTINELS = {
    type(getattr(dataclasses, name)): name
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
    if hasattr(dataclasses, name)
}


def _context_variable(variable: contextvars.ContextVar[Any]) -> Any:
    """A new one, with the value that it has here."""
    try:
        return _set_again, (variable.name, variable.get())
    except LookupError:
        return contextvars.ContextVar, (variable.name,)


def _set_again(name: str, value: Any) -> contextvars.ContextVar[Any]:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar(name)
    variable.set(value)
    return variable


_REDUCERS: dict[type, Reducer] = {
    types.CellType: _cell,
    types.MappingProxyType: _mapping_proxy,
    types.ModuleType: modules.reduce_module,
    functools._lru_cache_wrapper: _cached,
    contextvars.ContextVar: _context_variable,
    **dict.fromkeys(_SENTINELS, _sentinel),
}
"""By exact type."""
