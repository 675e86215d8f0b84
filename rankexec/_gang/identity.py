"""Which objects of a session's calls are told apart, once they have travelled, and how.

What can be changed is one object, wherever it is met. All that a pickler has met stands in its
memo, numbered, and in the unpickler's under the same numbers: so both sides know each object by the
number of its call and its own. Neither side holds it. Most are known by weak references. Lists and
dicts have none: those below an object are known by the way from there, others are held until it is
seen that nobody else does.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from sys import getrefcount
from typing import Any, NamedTuple, TypeAlias

__all__ = ("Held", "Met", "Path", "Way", "find", "met", "nobody_else_holds")

Path: TypeAlias = "tuple[str | int, ...]"
"""From an object's attribute to what is below it: keys that are strings, else positions."""


class Way(NamedTuple):
    """How a list or dict is found that belongs to an object."""

    owner: Any
    path: Path


class Met(NamedTuple):
    """What a pickler or an unpickler has met, and can be changed; each with its number."""

    weak: list[tuple[int, Any]]
    """What can be referred to weakly."""
    loose: list[tuple[int, Any]]
    """What cannot, and is below nothing that can."""
    below: list[tuple[Any, Way]]
    """What cannot, but is below something that can."""


class Held:
    """A reference to what cannot be referred to weakly, called like one that is weak."""

    __slots__ = ("obj",)

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __call__(self) -> Any:
        return self.obj


def met(memo: Iterable[tuple[int, Any]]) -> Met:
    """Sort out what a memo has: numbers and objects."""
    kinds: dict[type, bool | None] = {}
    found = Met([], [], [])
    loose: dict[int, tuple[int, Any]] = {}
    attributes: list[tuple[Any, dict[str, Any]]] = []
    for number, obj in memo:
        kind = type(obj)
        if kind not in kinds:
            kinds[kind] = _has_weak_references(kind)
        weak = kinds[kind]
        if weak:
            found.weak.append((number, obj))
        elif weak is not None:
            loose[id(obj)] = number, obj
        if (weak or kind is types.FunctionType) and (own := _attributes(obj)):
            attributes.append((obj, own))
    for _, own in attributes:  # pickled apart from their object, and part of it
        loose.pop(id(own), None)
    for owner, own in attributes:
        if not loose:
            break
        for obj, path in _below(own, loose):
            found.below.append((obj, Way(owner, path)))
    found.loose.extend(loose.values())
    return found


def _has_weak_references(kind: type) -> bool | None:
    """Return whether instances can be referred to weakly; None: they need not be told apart."""
    if issubclass(kind, _UNCHANGING) or kind.__module__.partition(".")[0] == "rankexec":
        return None
    if kind.__weakrefoffset__:
        return True
    # What is nothing to the garbage collector refers to nothing: a dtype, a date.
    changes = issubclass(kind, bytearray) or kind.__flags__ & _COLLECTED
    return False if changes else None


_COLLECTED = 1 << 14
_UNCHANGING = (
    type, tuple, frozenset, str, bytes, int, float, complex, slice, enum.Enum, property,
    staticmethod, classmethod, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.CodeType, types.ModuleType, types.MappingProxyType, types.GenericAlias,
)  # fmt: skip
"""Functions travel each time, and bring names along that they read; classes are cloudpickle's."""


def _attributes(obj: Any) -> dict[str, Any] | None:
    try:
        own = object.__getattribute__(obj, "__dict__")
    except Exception:  # it has slots, or is a proxy of what is not there
        return None
    return own if type(own) is dict else None


_MANY = 1000
"""Items of a container in which others are looked for."""


def _below(own: dict[str, Any], loose: dict[int, tuple[int, Any]]) -> Iterator[tuple[Any, Path]]:
    """Yield, and take out of `loose`, what is below an object's attributes, and the way there."""
    waiting: list[tuple[Any, Path]] = [(own, ())]
    while waiting:
        container, path = waiting.pop()
        for step, item in _items(container):
            if id(item) in loose:
                del loose[id(item)]
                yield item, (*path, step)
                waiting.append((item, (*path, step)))


def _items(container: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(container, dict) and dict.__len__(container) <= _MANY:
        for place, (key, item) in enumerate(list(dict.items(container))):
            yield (key if type(key) is str else place), item
    elif isinstance(container, list) and list.__len__(container) <= _MANY:
        yield from enumerate(list.copy(container))


def find(way: Way) -> Any:
    """Return what is at the end of a way just now; None if there is nothing."""
    here: Any = _attributes(way.owner)
    try:
        for step in way.path:
            if isinstance(here, dict):
                here = here[step] if isinstance(step, str) else _at(here, step)
            else:
                here = here[step]
    except Exception:  # the owner has been changed meanwhile
        return None
    return here


def _at(items: dict[Any, Any], place: int) -> Any:
    return next(islice(dict.values(items), place, None))


def nobody_else_holds(held: dict[int, Held]) -> list[int]:
    """Return the keys of those objects that are held here alone; call it until there are none."""
    counts = map(getrefcount, map(_object, held.values()))
    return [key for key, count in zip(held, counts, strict=True) if count <= _ALONE]


_object = attrgetter("obj")
_ALONE = next(map(getrefcount, map(_object, [Held([])])))
