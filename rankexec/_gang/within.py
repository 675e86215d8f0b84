"""What the ranks have made within something that has travelled: a layer, a gradient, momentum.

The caller, which is a rank, has made it too, and finds it by the way there; the others go the same
way. Only where nobody has a number for what they find there, and it is of the same kind, it is the
same: elsewhere one of the two has put something of its own in.
"""

from __future__ import annotations

import gc
import io
import pickle
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copyreg import _slotnames  # type: ignore[attr-defined]  # typeshed has no private names
from itertools import islice
from sys import getrefcount
from typing import Any, NamedTuple

from rankexec._gang.identity import (
    UNCHANGING,
    Number,
    attributes_of,
    is_told_apart,
)

__all__ = ("Within", "find_within", "follow", "held_elsewhere")

_MOST = 10_000
"""Items of a container in which others are looked for."""


class Step(NamedTuple):
    """From an object to one in it: an attribute, or an item by its key or its position."""

    how: str
    which: Any


class Within(NamedTuple):
    """Where something is, and what."""

    owner: Number
    steps: tuple[Step, ...]
    kind: str

    def place(self) -> str:
        """Return the way, for a message."""
        texts = {"attribute": ".{}", "item": "[{!r}]", "of": "[...]", "at": "[{}]"}
        return "".join(texts[how].format(which) for how, which in self.steps)


# --- in the caller ---


def held_elsewhere(memo: Mapping[int, tuple[int, Any]]) -> dict[int, Any]:
    """Return what of a C pickler's memo is held by more than this and what is in it, by id.

    Of a tensor nobody can say that: what holds a gradient is not in Python.
    """
    holding = Counter(map(id, gc.get_referents(*(obj for _, obj in memo.values()))))
    found = {}
    for key, (_, obj) in memo.items():
        if getrefcount(obj) > _IN_MEMO + holding[key] or _is_tensor(obj):
            found[key] = obj
    return {key: obj for key, obj in found.items() if is_told_apart(type(obj))}


def _count_in_memo() -> int:
    pickler = pickle.Pickler(io.BytesIO())
    pickler.dump([])
    memo: Any = pickler.memo.copy()
    return next(getrefcount(obj) for _, (_, obj) in memo.items())


_IN_MEMO = _count_in_memo()
"""How often an object is held that nobody else holds, when it is asked for as above."""


def find_within(
    known: list[Any], wanted: dict[int, Any], number_of: Callable[[Any], Number | None]
) -> dict[int, Within | None]:
    """Find some objects within others that have travelled, and not as parts of these.

    Args:
        known: what has travelled.
        wanted: by id, what has not.
        number_of: returns the number of what is known.

    Returns:
        By id, where they are; None where nobody can say how to go there.
    """
    inside = _reach(known, wanted)
    found: dict[int, Within | None] = dict.fromkeys(inside)
    if inside:
        for obj in known:
            if (number := number_of(obj)) is None:  # let go meanwhile
                continue
            for inner, steps in _walk(obj, number_of):
                if id(inner) in inside and found[id(inner)] is None:
                    found[id(inner)] = Within(number, steps, kind_of(inner))
    return found


def _reach(known: list[Any], wanted: dict[int, Any]) -> set[int]:
    """Return which of the wanted are referred to by what is known, or by what is in that.

    Most calls bring nothing of the kind, and this is asked for each: it goes through all that the
    ranks have, so the interpreter's own loops do it.
    """
    seen = set(map(id, known))
    inside: set[int] = set()
    tensors = any(map(_is_tensor, wanted.values()))
    waiting = known
    while waiting:
        inner = gc.get_referents(*waiting)
        if tensors:
            inner += _gradients_of(waiting)
        new = {key: obj for key, obj in zip(map(id, inner), inner, strict=True) if key not in seen}
        seen |= new.keys()
        inside |= new.keys() & wanted.keys()
        kinds = {kind for kind in set(map(type, new.values())) if not _is_closed(kind)}
        waiting = [obj for obj in new.values() if type(obj) in kinds and not _is_long(obj)]
    return inside


def _gradients_of(objects: Iterable[Any]) -> list[Any]:
    kinds = tuple(kind for kind in set(map(type, objects)) if issubclass(kind, _tensor()))
    return [obj.grad for obj in objects if type(obj) in kinds and obj.is_leaf]


def _is_closed(kind: type) -> bool:
    """Return whether nobody looks into instances: functions, modules, numbers."""
    return issubclass(kind, UNCHANGING) and not issubclass(kind, (tuple, frozenset))


def _is_long(obj: Any) -> bool:
    return isinstance(obj, _CONTAINERS) and len(obj) > _MOST


_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def _walk(
    known: Any, number_of: Callable[[Any], Number | None]
) -> Iterator[tuple[Any, tuple[Step, ...]]]:
    """Yield what is in something, and in turn in what is there and has not travelled."""
    waiting: deque[tuple[Any, tuple[Step, ...]]] = deque([(known, ())])
    seen = {id(known)}
    while waiting:
        obj, steps = waiting.popleft()
        for step, inner in _steps(obj, number_of):
            closed = _is_closed(type(inner)) or _is_long(inner)
            if not closed and id(inner) not in seen and number_of(inner) is None:
                seen.add(id(inner))
                waiting.append((inner, (*steps, step)))
                yield inner, (*steps, step)


def _steps(obj: Any, number_of: Callable[[Any], Number | None]) -> Iterator[tuple[Step, Any]]:
    for name, value in list((attributes_of(obj) or {}).items()):
        yield Step("attribute", name), value
    for name in _slotnames(type(obj)):
        if (value := getattr(obj, name, None)) is not None:
            yield Step("attribute", name), value
    if _is_tensor(obj) and obj.is_leaf and obj.grad is not None:
        yield Step("attribute", "grad"), obj.grad
    if isinstance(obj, dict):
        for place, (key, value) in enumerate(list(dict.items(obj))):
            if isinstance(key, (str, int, bytes, type(None))):
                yield Step("item", key), value
            elif (number := number_of(key)) is not None:
                yield Step("of", number), value
            else:
                yield Step("at", place), value
    elif isinstance(obj, (list, tuple, deque)):
        yield from ((Step("at", place), value) for place, value in enumerate(list(obj)))


def _is_tensor(obj: Any) -> bool:
    return isinstance(obj, _tensor())


def _tensor() -> Any:
    return getattr(sys.modules.get("torch"), "Tensor", ())


def kind_of(obj: Any) -> str:
    """Return what two ranks see alike in objects that each has made."""
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    return f"{kind} {tuple(obj.shape)} {obj.dtype}" if _is_tensor(obj) else kind


# --- in a rank ---


def follow(way: Within, find: Callable[[Number], Any], numbered: Iterable[Any]) -> Any:
    """Return what is where the caller has something; None if it is something else.

    Args:
        way: the way.
        find: returns what has a number here.
        numbered: all that has one: that is another than the caller's.
    """
    here = find(way.owner)
    try:
        for how, which in way.steps:
            here = _step(here, how, find(which) if how == "of" else which)
    except Exception:  # there is no such thing: the caller has put it in by itself
        return None
    if here is None or any(other is here for other in numbered):
        return None
    if kind_of(here) != way.kind:
        warnings.warn(
            f"what the ranks have made ({way.place()}) is {way.kind} on the caller's rank and "
            f"{kind_of(here)} here: a call that reaches it brings this rank a copy of the caller's",
            RuntimeWarning,
            stacklevel=1,
        )
        return None
    return here


def _step(here: Any, how: str, which: Any) -> Any:
    if how == "attribute":
        own = attributes_of(here) or {}
        return own[which] if which in own else getattr(here, which)
    if how == "at" and isinstance(here, dict):
        return next(islice(dict.values(here), which, None))
    return here[which]
