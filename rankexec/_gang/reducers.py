"""What people ship and cloudpickle loses or refuses: one reducer each, with its reason.

A reducer takes an object and returns what `__reduce__` returns. `choose` finds the one for a type;
None means that cloudpickle does it right.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import gc
import sys
import types
from collections.abc import Callable
from typing import Any

from rankexec._gang import (
    absent,
    arrays,
    dynamic,
    enums,
    exceptions,
    gradients,
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

__all__ = ("PLAIN", "Reducer", "choose")

PLAIN = (type, types.BuiltinFunctionType, types.CodeType)
"""Types in most calls for which no pickler has a reducer, whatever is imported."""


def choose(cls: type) -> Reducer | None:
    """Return the reducer for instances of `cls`, or None where cloudpickle needs no help."""
    if issubclass(cls, BaseException) and (reducer := exceptions.choose(cls)):
        return reducer
    return (
        _REDUCERS.get(cls)
        or arrays.choose(cls)
        or storages.choose(cls)
        or tensors.choose(cls)
        or gradients.choose(cls)
        or whole.choose(cls)
        or primitives.choose(cls)
        or transient.choose(cls)
        or absent.choose(cls)
        or enums.choose(cls)
        or hints.choose(cls)
        or _choose_pydantics(cls)
        or refusals.choose(cls)
    )


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


def _choose_pydantics(cls: type) -> Reducer | None:
    """What `pydantic.validate_call` makes holds all of `__main__`, to look up names in it."""
    made_there: Any = sys.modules.get("pydantic._internal._validate_call")
    validating = getattr(made_there, "ValidateCallWrapper", None)
    # Before pydantic 2.10 it cannot be told to look for names later.
    return _validating if cls is validating and hasattr(cls, "__pydantic_complete__") else None


def _validating(wrapper: Any) -> Any:
    config = {**wrapper.config_wrapper.config_dict, "defer_build": True}
    content = wrapper.function, config, wrapper.validate_return
    return object.__new__, (type(wrapper),), content, None, None, _validate_again


def _validate_again(wrapper: Any, content: tuple[Any, ...]) -> None:
    # As the decorator does. The function's names are there when it is called.
    wrapper.__init__(*content, None)


_REDUCERS: dict[type, Reducer] = {
    types.CellType: _cell,
    types.MappingProxyType: _mapping_proxy,
    types.ModuleType: modules.reduce_module,
    functools._lru_cache_wrapper: _cached,
    contextvars.ContextVar: _context_variable,
    **dict.fromkeys(_SENTINELS, _sentinel),
}
"""By exact type."""
