"""Which objects of a session's calls are told apart, once they have travelled, and how.

What can be changed is one object, wherever it is met. All that a pickler has met stands in its
memo, numbered, and in the unpickler's under the same numbers: so both sides know each object by the
number of its call and its own. Neither side holds it. Most are known by weak references. Lists and
dicts have none: those below an object are held with it, others until it is seen that nobody else
does.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from sys import getrefcount
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = (
    "UNCHANGING",
    "Held",
    "Met",
    "Number",
    "Path",
    "Way",
    "attributes_of",
    "below",
    "count_of",
    "find_in",
    "held_alone",
    "inner_objects",
    "is_told_apart",
    "items_of",
    "met",
    "nobody_else_holds",
)

Key = TypeVar("Key")
_Held = TypeVar("_Held", bound="Held")
Number: TypeAlias = "int | tuple[int, str, int]"
"""Of an object. Of one that ranks have made: the call's, the name that has it, and its place."""

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
    below: list[tuple[int, Any, Way]]
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
    kinds = _known_kinds.copy()
    found = Met([], [], [])
    loose: dict[int, tuple[int, Any]] = {}
    owners: list[tuple[Any, dict[str, Any]]] = []
    parts: list[Any] = []
    for number, obj in memo:
        kind = type(obj)
        if kind in _ATOMS:  # most are
            continue
        if kind not in kinds:
            kinds[kind] = _has_weak_references(kind)
        if weak := kinds[kind]:
            found.weak.append((number, obj))
            if (own := attributes_of(obj)) is not None:
                owners.append((obj, own))
                parts.append(own)
        elif weak is not None:
            loose[id(obj)] = number, obj
        else:
            parts += _parts(obj)
    for part in parts:
        loose.pop(id(part), None)
    for owner, own in owners:
        for (number, obj), path in below(own, loose):
            found.below.append((number, obj, Way(owner, path)))
    found.loose.extend(loose.values())
    return found


def _parts(obj: Any) -> tuple[Any, ...]:
    """Return what is pickled apart from an object, but is nothing by itself."""
    if isinstance(obj, types.FunctionType):
        return obj.__dict__, obj.__annotations__, obj.__kwdefaults__
    own = attributes_of(obj) if type(obj).__module__.startswith(_OURS) else None
    return () if own is None else (own, *own.values())


def is_told_apart(kind: type) -> bool:
    """Return whether instances are known, once they have travelled."""
    return (_known_kinds[kind] if kind in _known_kinds else _has_weak_references(kind)) is not None


def _has_weak_references(kind: type) -> bool | None:
    """Return whether instances can be referred to weakly; None: they need not be told apart."""
    weak = _find_whether(kind)
    if not kind.__flags__ & _MADE_AT_RUN_TIME:
        _known_kinds[kind] = weak
    return weak


def _find_whether(kind: type) -> bool | None:
    if issubclass(kind, UNCHANGING) or str(kind.__module__).startswith(_OURS):
        return None
    if kind.__weakrefoffset__:
        return True
    # What is nothing to the garbage collector refers to nothing: a dtype, a date.
    changes = issubclass(kind, bytearray) or kind.__flags__ & _COLLECTED
    return False if changes or _is_nothing_else(kind) else None


def _is_nothing_else(kind: type) -> bool:
    """Return whether instances are told apart by what they are alone: sentinels."""
    equal: Any = kind.__eq__
    made = kind.__flags__ & _MADE_AT_RUN_TIME
    return kind is object or bool(made and equal is object.__eq__)


_known_kinds: dict[type, bool | None] = {}
"""Of types that are never gone: what was found out."""
_MADE_AT_RUN_TIME, _COLLECTED = 1 << 9, 1 << 14
_OURS = "rankexec."
_ATOMS = frozenset({str, int, float, bool, bytes, type, tuple, types.CodeType})
UNCHANGING = (
    type, type(None), tuple, frozenset, str, bytes, int, float, complex, slice, enum.Enum, property,
    staticmethod, classmethod, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.CodeType, types.ModuleType, types.MappingProxyType, types.GenericAlias,
)  # fmt: skip
"""Functions and classes bring along what they read: see `definitions`."""


def attributes_of(obj: Any) -> dict[str, Any] | None:
    """Return an object's own attributes; None if it has none in a dict."""
    try:
        own = object.__getattribute__(obj, "__dict__")
    except Exception:  # it has slots, or is a proxy of what is not there
        return None
    return own if type(own) is dict else None


_MANY = 1000
"""Items of a container in which others are looked for."""


def below(own: dict[str, Any], loose: dict[int, tuple[Any, Any]]) -> Iterator[tuple[Any, Path]]:
    """Yield what is below attributes or names, and the way there; take it out of `loose`.

    Args:
        own: attributes of an object, or names.
        loose: by id, what is looked for: anything, and the object.
    """
    waiting: list[tuple[Any, Path]] = [(own, ())]
    while loose and waiting:
        container, path = waiting.pop()
        for step, item in items_of(container):
            if id(item) in loose:
                yield loose.pop(id(item)), (*path, step)
                waiting.append((item, (*path, step)))


def items_of(container: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield what is in a list or dict that is not too long, and the step there."""
    if isinstance(container, dict) and dict.__len__(container) <= _MANY:
        for place, (key, item) in enumerate(list(dict.items(container))):
            yield (key if type(key) is str else place), item
    elif isinstance(container, list) and list.__len__(container) <= _MANY:
        yield from enumerate(list.copy(container))


def inner_objects(container: Any) -> Iterator[Any]:
    """Yield what is in a list or dict, and in those in it, and can be referred to weakly."""
    seen: set[int] = set()
    waiting = [container]
    while waiting and len(seen) < _MANY:
        seen.add(id(container := waiting.pop()))
        for _, item in items_of(container):
            if type(item).__weakrefoffset__:
                yield item
            elif isinstance(item, (dict, list)) and id(item) not in seen:
                waiting.append(item)


def find_in(here: Any, path: Path) -> Any:
    """Return what is below attributes or names; None if there is nothing."""
    try:
        for step in path:
            if isinstance(here, dict):
                here = here[step] if isinstance(step, str) else _at(here, step)
            else:
                here = here[step]
    except Exception:  # the owner has been changed meanwhile
        return None
    return here


def _at(items: dict[Any, Any], place: int) -> Any:
    return next(islice(dict.values(items), place, None))


def nobody_else_holds(held: Mapping[Key, Held]) -> list[Key]:
    """Return the keys of those objects that are held here alone; call it until there are none."""
    held = dict(held)  # other threads, or finalizers, change it meanwhile
    counts = map(getrefcount, map(_object, held.values()))
    return [key for key, count in zip(held, counts, strict=True) if count <= _ALONE]


def count_of(held: Held) -> int:
    """Return how often an object that is held here is held elsewhere; 0 also if it is none."""
    if held.obj is None:
        return 0
    return next(map(getrefcount, map(_object, [held]))) - _ALONE


def held_alone(held: Sequence[_Held]) -> list[_Held]:
    """Return those whose objects are held here alone, or that hold none; fast."""
    counts = map(getrefcount, map(_object, held))
    found = [one for one, count in zip(held, counts, strict=True) if count <= _ALONE]
    return found + [one for one in held if one.obj is None]


_object = attrgetter("obj")
_ALONE = next(map(getrefcount, map(_object, [Held([])])))
