"""Lists and dicts that belong to an object that can be referred to weakly: they go with it.

They are held. Nothing else tells a list from another that comes to be at the same address, and for
lists that is most often the next one: of rows that are taken out and put in. So that a hold keeps
nothing, it ends with the object that a list belongs to, and while the garbage collector looks for
cycles; a list that is taken out of its object is held until it is seen that nobody else does.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rankexec._gang.identity import (
    Number,
    Path,
    attributes_of,
    below,
    count_of,
    find_in,
    held_alone,
    items_of,
)
from rankexec._gang.known import Part, Weak

__all__ = ("Parts", "around_collections", "forget_parts", "forgetting", "take_out")

_AT_ONCE = 100
"""How many are looked at after a call: there may be 10,000, of a model's modules."""


class Parts:
    """All of one side."""

    def __init__(self) -> None:
        self._all: dict[int, Part] = {}
        self._turn: list[Part] = []
        """Those that are still to be looked at."""
        around_collections(self)

    def note(self, obj: Any, number: Number, owner: Weak | None, path: Path) -> Part:
        """Hold an object, under one number more if it is held already."""
        part = self._all.get(id(obj))
        if part is not None and part.obj is obj:
            part.numbers.append(number)
            return part
        part = self._all[id(obj)] = Part(obj, number, owner, path)
        if owner is not None:
            owner.parts.append(part)
            owner.own = attributes_of(owner())
        return part

    def remove(self, part: Part) -> None:
        """Hold a part no longer."""
        take_out(self._all, part.address, part)
        part.obj = part.owner = None

    def without(self, owner: Weak) -> list[Part]:
        """Hold no longer what goes with its owner, and return it; what others have stays."""
        parts = [p for p in owner.parts if p.owner is owner and p.obj is not None]
        inside = _counts([owner.own, *(p.obj for p in parts)])
        owner.parts, owner.own = [], None
        stay = {p.address for p in parts if count_of(p) > inside[p.address]}
        if 0 < len(stay) < len(parts):
            loose = {p.address: (p, None) for p in parts}
            held = {str(p.address): p.obj for p in parts if p.address in stay}
            stay.update(p.address for (p, _), _ in below(held, loose))
        gone = [p for p in parts if p.address not in stay]
        for part in parts:
            part.owner = None
        for part in gone:
            self.remove(part)
        return gone

    def unheld(self) -> list[Part]:
        """Hold no longer what nobody else does, and return it."""
        if _collecting:  # in another thread
            return []
        if not self._turn:
            self._turn = list(self._all.values())
        some = self._turn[-_AT_ONCE:]
        del self._turn[-_AT_ONCE:]
        gone: list[Part] = []
        while alone := [p for p in held_alone(some) if self._all.get(p.address) is p]:
            gone += alone
            for part in alone:
                self.remove(part)
            some = list(self._all.values())  # what was in them
        return gone

    def release(self) -> None:
        """Let go, for a moment, of those that are where they belong, and nowhere else."""
        for part in list(self._all.values()):
            owner = None if part.owner is None else part.owner()
            if owner is not None and count_of(part) <= 1 and _is_there(part, owner):
                part.obj = None
            if part.owner is not None:
                part.owner.own = None

    def take_again(self) -> None:
        """Hold those again that are still there."""
        for part in list(self._all.values()):
            if part.owner is not None:
                own = part.owner.own = attributes_of(part.owner())
                if part.obj is None and id(found := find_in(own, part.path)) == part.address:
                    part.obj = found


def _counts(containers: list[Any]) -> Counter[int]:
    """Return how often each object is in these."""
    return Counter(id(item) for container in containers for _, item in items_of(container))


def _is_there(part: Part, owner: Any) -> bool:
    """Return whether a part is below its owner, wherever; note where."""
    own = attributes_of(owner)
    if own is None:
        return False
    if find_in(own, part.path) is part.obj:
        return True
    for _, path in below(own, {part.address: (part, None)}):
        part.path = path
        return True
    return False


def forgetting(
    known: dict[int, Any], ids: dict[Number, int], parts: Parts, key: int
) -> Callable[[weakref.ref[Any]], None]:
    """Return what is called when an object is gone; it holds the tables, not who has them."""

    def forget(weak: Any) -> None:
        ids.pop(weak.number, None)
        take_out(known, key, weak)
        forget_parts(known, ids, parts.without(weak))

    return forget


def forget_parts(known: dict[int, Any], ids: dict[Number, int], parts: Iterable[Part]) -> None:
    """Forget lists and dicts that are held no longer."""
    for part in parts:
        ids.pop(part.number, None)
        take_out(known, part.address, part)


def take_out(table: dict[Any, Any], key: Any, value: Any) -> bool:
    """Take a value out of a table; return whether it was there.

    A finalizer or another thread may be faster.
    """
    return table.get(key) is value and table.pop(key, None) is value


class Holds(Protocol):
    """What holds objects that may refer to what they go with."""

    def release(self) -> None:
        """Let them go, for a moment."""

    def take_again(self) -> None:
        """Hold those again that are still there."""


def around_collections(table: Holds) -> None:
    """Let cycles through what is held be found, by a collection of all that there is."""
    _tables.add(table)
    if _around_collection not in gc.callbacks:
        gc.callbacks.append(_around_collection)


_tables: weakref.WeakSet[Holds] = weakref.WeakSet()


def _around_collection(phase: str, info: dict[str, int]) -> None:
    if info["generation"] == _ALL:
        for table in list(_tables):
            (table.release if phase == "start" else table.take_again)()
        _collecting[:] = [phase] if phase == "start" else []


_ALL = 2
_collecting: list[str] = []
