"""Which names of `__main__` something reads that is not pickled: the ranks of a session have it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

from rankexec._gang.dynamic import globals_of
from rankexec._gang.main import is_main, main_namespace

__all__ = ("names_read_by",)

_MANY = 1000
"""Items of a container that may be functions, and not data."""


def names_read_by(value: Any) -> set[str]:
    """Return the names of `__main__` in the code that `value` is made of.

    Looked through are functions, with what they wrap, their defaults and closures; classes of
    `__main__` with all that they define; of objects the class, and those attributes that can be
    called, or are of a class of `__main__`; and such items of lists, tuples and dicts.
    """
    names: set[str] = set()
    seen: dict[int, Any] = {}  # holds what it has seen: an id is not given away meanwhile
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        kind = type(part)
        if issubclass(kind, types.FunctionType) and part.__globals__ is main_namespace():
            names.update(globals_of(part))
        parts_of = (parts for base, parts in _PARTS.items() if issubclass(kind, base))
        waiting.extend(next(parts_of, _of_object)(part))
    return names


def _has_code(value: Any) -> bool:
    return callable(value) or is_main(type(value).__module__)


def _of_function(function: types.FunctionType) -> Iterable[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # `__wrapped__`, and what decorators keep
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            continue


def _of_class(cls: type) -> Iterable[Any]:
    if is_main(cls.__module__):
        yield from vars(cls).values()
        yield from cls.__bases__
        yield type(cls)


def _of_partial(partial: functools.partial[Any]) -> Iterable[Any]:
    return (partial.func, *partial.args, *partial.keywords.values())


def _of_dict(items: dict[Any, Any]) -> Iterable[Any]:
    if dict.__len__(items) <= _MANY:  # a subclass may have methods of its own
        yield from filter(_has_code, list(dict.values(items)))


def _of_list(items: list[Any]) -> Iterable[Any]:
    if list.__len__(items) <= _MANY:
        yield from filter(_has_code, list.copy(items))


def _of_tuple(items: tuple[Any, ...]) -> Iterable[Any]:
    if tuple.__len__(items) <= _MANY:
        yield from filter(_has_code, tuple.__iter__(items))


def _of_object(obj: Any) -> Iterable[Any]:
    yield type(obj)
    try:
        attributes = list(object.__getattribute__(obj, "__dict__").values())
    except Exception:  # it has slots, or nothing; or is a proxy of what is not there
        return
    for value in attributes:
        if isinstance(value, (dict, list, tuple)) or _has_code(value):
            yield value


_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    types.FunctionType: _of_function,
    types.MethodType: lambda method: (method.__func__, method.__self__),
    functools.partial: _of_partial,
    staticmethod: lambda method: (method.__func__,),
    classmethod: lambda method: (method.__func__,),
    property: lambda prop: (prop.fget, prop.fset, prop.fdel),
    type: _of_class,
    dict: _of_dict,
    list: _of_list,
    tuple: _of_tuple,
    types.ModuleType: lambda _: (),
}
"""By type, what something is made of."""
