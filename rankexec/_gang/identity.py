"""Which objects of a session's calls are told apart, once they have travelled, and how.

What can be changed is one object, wherever it is met. All that a pickler has met stands in its
memo, numbered, and in the unpickler's under the same numbers: so both sides know each object by the
number of its call and its own. Neither side holds it. Most are known by weak references. Lists and
dicts have none: those below an object are known by the way from there, others are held until it is
seen that nobody else does.
"""

from __future__ import annotations

import enum
import sys
import types
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from sys import getrefcount
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = (
    "Held",
    "Met",
    "Number",
    "Path",
    "Way",
    "alike",
    "below",
    "find",
    "find_in",
    "met",
    "nobody_else_holds",
    "walk",
)

Key = TypeVar("Key")
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
    attributes: list[tuple[Any, dict[str, Any]]] = []
    inner: list[Any] = []
    for number, obj in memo:
        kind = type(obj)
        if kind not in kinds:
            kinds[kind] = _has_weak_references(kind)
            if not kind.__flags__ & _MADE_AT_RUN_TIME:
                _known_kinds[kind] = kinds[kind]
        weak = kinds[kind]
        if weak:
            found.weak.append((number, obj))
        elif weak is not None:
            loose[id(obj)] = number, obj
        if (weak or kind is types.FunctionType) and (own := _attributes(obj)) is not None:
            attributes.append((obj, own))
        if kind is types.FunctionType:
            inner += obj.__annotations__, obj.__kwdefaults__
        elif weak is None and kind.__module__.startswith(_OURS):
            inner.append(_attributes(obj))
    for part in (*(own for _, own in attributes), *inner):  # apart in a pickle, but no objects
        loose.pop(id(part), None)
    for owner, own in attributes:
        for (number, obj), path in below(own, loose):
            found.below.append((number, obj, Way(owner, path)))
    found.loose.extend(loose.values())
    return found


def _has_weak_references(kind: type) -> bool | None:
    """Return whether instances can be referred to weakly; None: they need not be told apart."""
    if issubclass(kind, _UNCHANGING) or kind.__module__.startswith(_OURS):
        return None
    if kind.__weakrefoffset__:
        return True
    # What is nothing to the garbage collector refers to nothing: a dtype, a date.
    changes = issubclass(kind, bytearray) or kind.__flags__ & _COLLECTED
    return False if changes else None


_known_kinds: dict[type, bool | None] = {}
"""Of types that are never gone: what was found out."""
_MADE_AT_RUN_TIME = 1 << 9
_OURS = "rankexec."
_COLLECTED = 1 << 14
_UNCHANGING = (
    type, type(None), tuple, frozenset, str, bytes, int, float, complex, slice, enum.Enum, property,
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


def below(own: dict[str, Any], loose: dict[int, tuple[Any, Any]]) -> Iterator[tuple[Any, Path]]:
    """Yield what is below attributes or names, and the way there; take it out of `loose`.

    Args:
        own: attributes of an object, or names.
        loose: by id, what is looked for: anything, and the object.
    """
    waiting: list[tuple[Any, Path]] = [(own, ())]
    while loose and waiting:
        container, path = waiting.pop()
        for step, item in _items(container):
            if id(item) in loose:
                yield loose.pop(id(item)), (*path, step)
                waiting.append((item, (*path, step)))


def _items(container: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(container, dict) and dict.__len__(container) <= _MANY:
        for place, (key, item) in enumerate(list(dict.items(container))):
            yield (key if type(key) is str else place), item
    elif isinstance(container, list) and list.__len__(container) <= _MANY:
        yield from enumerate(list.copy(container))


def find(way: Way) -> Any:
    """Return what is at the end of a way just now; None if there is nothing."""
    return find_in(_attributes(way.owner), way.path)


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


# --- what the ranks have made, each its own ---

_MOST = 10_000
"""Objects that are looked at for one name."""


def walk(value: Any) -> list[Any]:
    """Return what can be changed of a value and of what is below it, in an order that is its own.

    Nothing of the user's runs, as it would in a pickler.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    waiting = deque([value])
    while waiting and len(found) < _MOST:
        obj = waiting.popleft()
        if id(obj) in seen or (isinstance(obj, _UNCHANGING) and not isinstance(obj, tuple)):
            continue
        seen[id(obj)] = obj
        found.append(obj)
        waiting.extend(_inner(obj))
    return found


def _inner(obj: Any) -> Iterable[Any]:
    if isinstance(obj, tuple):
        return tuple.__iter__(obj)
    if isinstance(obj, (dict, list)):
        return (item for _, item in _items(obj))
    tensor: Any = getattr(sys.modules.get("torch"), "Tensor", ())
    inner = list((_attributes(obj) or {}).values())
    if isinstance(obj, tensor):
        with suppress(Exception):  # there are tensors without
            inner.append(tensor.untyped_storage(obj))
    return inner


def alike(found: Iterable[Any]) -> int:
    """Return a number by which two ranks see whether they have walked the same way."""
    kinds = (f"{type(obj).__module__}.{type(obj).__qualname__}" for obj in found)
    return zlib.crc32("\n".join(kinds).encode())


def nobody_else_holds(held: Mapping[Key, Held]) -> list[Key]:
    """Return the keys of those objects that are held here alone; call it until there are none."""
    counts = map(getrefcount, map(_object, held.values()))
    return [key for key, count in zip(held, counts, strict=True) if count <= _ALONE]


_object = attrgetter("obj")
_ALONE = next(map(getrefcount, map(_object, [Held([])])))
