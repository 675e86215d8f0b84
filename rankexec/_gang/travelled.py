"""Which objects of the caller's the ranks of a session have: they do not travel again.

The caller's side; the ranks' is in `arrived`.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from rankexec._gang.identity import Held, Path, Way, find, met, nobody_else_holds

__all__ = ("Memo", "Reference", "Span", "Travelled")

Memo: TypeAlias = "dict[int, tuple[int, Any]]"
"""As a pickler has it: by id, an object's number and the object."""
Span: TypeAlias = "tuple[int, int]"
"""Numbers from one up to another."""


class Reference(NamedTuple):
    """What stands for an object that the ranks have."""

    number: int
    """Of the object, or of the one that it belongs to."""
    path: Path = ()


class _Weak(weakref.ref):  # type: ignore[type-arg]  # of anything
    __slots__ = ("number", "parts")
    number: int
    parts: list[int]
    """The ids of what is known by a way from here."""

    def refer(self) -> Reference:
        return Reference(self.number)


class _Kept(Held):
    __slots__ = ("number",)

    def __init__(self, obj: Any, number: int) -> None:
        super().__init__(obj)
        self.number = number

    def refer(self) -> Reference:
        return Reference(self.number)


class _Part:
    __slots__ = ("owner", "path")

    def __init__(self, owner: _Weak, path: Path) -> None:
        self.owner = owner
        self.path = path

    def __call__(self) -> Any:
        return find(Way(self.owner(), self.path))

    def refer(self) -> Reference:
        return Reference(self.owner.number, self.path)


class Travelled:
    """The objects that have travelled, as long as the caller and a rank have them.

    Args:
        children: how many ranks they have travelled to.
    """

    def __init__(self, children: int) -> None:
        self._children = children
        self._known: dict[int, _Weak | _Kept | _Part] = {}
        self._held: dict[int, Held] = {}
        self._ids: dict[int, int] = {}
        """Of those that have a number of their own, by that."""
        self._dropped: Counter[int] = Counter()
        """By how many ranks; as long as not by all, it is known."""
        self._next = 0
        self._lock = threading.Lock()

    def among(self, memo: Memo) -> dict[int, Reference]:
        """Return, by id, what of a memo the ranks have."""
        ids = self._known.keys() & memo.keys()
        return {key: known.refer() for key in ids if (known := self._is(key, memo[key][1]))}

    def all(self) -> dict[int, Reference]:
        """Return all that the ranks have; the ids are those of what is alive."""
        return {key: known.refer() for key, known in list(self._known.items())}

    def numbers(self, memo: Memo) -> list[tuple[int, int]]:
        """Return, of what of a memo has a number of its own here, that in the memo, and that."""
        found = self.among(memo)
        return [(memo[key][0], ref.number) for key, ref in found.items() if not ref.path]

    def _is(self, key: int, obj: Any) -> _Weak | _Kept | _Part | None:
        known = self._known.get(key)
        return known if known is not None and known() is obj else None

    def note(self, memo: Memo) -> int:
        """Note what a call brings, by its pickler's memo; return the number of the first of it."""
        with self._lock:  # several threads may submit
            first, self._next = self._next, self._next + len(memo)
            found = met(memo.values())
            for number, obj in found.weak:
                self._note(obj, self._weak(obj, first + number))
            for number, obj in found.loose:
                kept = _Kept(obj, first + number)
                self._note(obj, kept)
                self._held[id(obj)] = kept
            for obj, way in found.below:
                if isinstance(owner := self._is(id(way.owner), way.owner), _Weak):
                    owner.parts.append(id(obj))
                    self._known[id(obj)] = _Part(owner, way.path)
        return first

    def _weak(self, obj: Any, number: int) -> _Weak:
        weak = _Weak(obj, _forgetting(self._known, self._ids, id(obj)))
        weak.number, weak.parts = number, []
        return weak

    def _note(self, obj: Any, known: _Weak | _Kept) -> None:
        self._known[id(obj)] = known
        self._ids[known.number] = id(obj)

    def forget_unheld(self) -> None:
        """Forget lists and dicts that only this holds, and what is in them."""
        while alone := nobody_else_holds(self._held):
            for key in alone:
                self._forget(self._held[key])

    def dropped(self, spans: Iterable[Span]) -> None:
        """Note what one rank has no longer. What none has will travel again."""
        for start, stop in spans:
            for number in range(start, stop):
                if number in self._ids:
                    self._dropped[number] += 1
                    if self._dropped[number] >= self._children:
                        self._forget(self._known[self._ids[number]])

    def _forget(self, known: Any) -> None:
        key = self._ids.pop(known.number, None)
        self._dropped.pop(known.number, None)
        if key is not None and self._known.get(key) is known:
            del self._known[key]
        if key is not None and self._held.get(key) is known:
            del self._held[key]
        for part in getattr(known, "parts", ()):
            self._known.pop(part, None)


def _forgetting(
    known: dict[int, Any], ids: dict[int, int], key: int
) -> Callable[[weakref.ref[Any]], None]:
    """Return what is called when an object is gone; it holds the tables, not who has them."""

    def forget(weak: Any) -> None:
        ids.pop(weak.number, None)
        if known.get(key) is weak:
            del known[key]
        for part in weak.parts:
            belongs = known.get(part)
            if isinstance(belongs, _Part) and belongs.owner is weak:
                del known[part]

    return forget
