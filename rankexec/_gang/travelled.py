"""Which objects of the caller's the ranks of a session have: they do not travel again.

The caller's side; the ranks' is in `arrived`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from rankexec._gang.alike import alike, walk
from rankexec._gang.identity import Number, met, nobody_else_holds
from rankexec._gang.known import Kept, Part, Weak
from rankexec._gang.output import warn
from rankexec._gang.parts import Parts, forget_parts, forgetting, take_out
from rankexec._gang.schedules import Optimizers
from rankexec._gang.spans import Span

__all__ = ("Memo", "Travelled")

Memo: TypeAlias = "dict[int, tuple[int, Any]]"
"""As a pickler has it: by id, an object's number and the object."""


class Travelled:
    """The objects that have travelled, as long as the caller and a rank have them.

    Args:
        children: how many ranks they have travelled to.

    Attributes:
        optimizers: those among them.
    """

    def __init__(self, children: int) -> None:
        self.optimizers = Optimizers()
        self._children = children
        self._known: dict[int, Weak | Kept | Part] = {}
        self._held: dict[int, Kept] = {}
        self._parts = Parts()
        self._ids: dict[Number, int] = {}
        """Of those that have a number of their own, by that."""
        self._dropped: Counter[Number] = Counter()
        """By how many ranks; as long as not by all, it is known."""
        self._unlike: set[tuple[int, str]] = set()
        """What ranks have made, each its own, and not alike: the call's number, and the name."""
        self._next = 0
        self._lock = threading.RLock()  # a finalizer may submit

    def __bool__(self) -> bool:
        return bool(self._known)

    def has(self, obj: Any) -> bool:
        """Return whether the ranks have an object."""
        return self.number_of(obj) is not None

    def number_of(self, obj: Any) -> Number | None:
        """Return an object's number, if it has one."""
        known = self._is(id(obj), obj)
        return None if known is None else known.number

    def reference(self, obj: Any) -> Number | None:
        """Return what stands for an object that the ranks have; None for others."""
        known = self._is(id(obj), obj)
        if known is None or self._is_replaced(known) or self._is_unlike(known.number):
            return None
        return known.number

    def reached(self, memo: Memo) -> bool:
        """Return whether the ranks have something of a memo."""
        ids = self._known.keys() & memo.keys()
        return any(self.reference(memo[key][1]) is not None for key in ids)

    def numbers(self, memo: Memo) -> dict[int, Number]:
        """Return, of what of a memo has a number of its own here, that, by the one in the memo."""
        ids = self._known.keys() & memo.keys()
        found = ((memo[key][0], self._is(key, memo[key][1])) for key in ids)
        return {place: known.number for place, known in found if known is not None}

    def all(self) -> list[Any]:
        """Return all that the ranks have."""
        return [obj for known in list(self._known.values()) if (obj := known()) is not None]

    def note_within(self, obj: Any, call: int) -> Number:
        """Note what the ranks have made within what they have; return its number."""
        with self._lock:
            number = (-1, "", self._next)
            self._next += 1
            self._take([(0, obj)], lambda _: number, call)
        return number

    def _is_replaced(self, known: Weak | Kept | Part) -> bool:
        """Return whether the ranks have no such thing where it was; warn if so, once."""
        if not isinstance(known, Part) or not known.replaced:
            return False
        owner = None if known.owner is None else known.owner()
        warn(
            f"the {type(known.obj).__name__} that was below {type(owner).__qualname__} "
            f"({known.place()}) is on no rank any more; a call brings them a copy of the "
            f"caller's, which belongs to nothing"
        )
        self._forget(known)
        return True

    def _is_unlike(self, number: Number) -> bool:
        """Return whether nobody can say which of a rank's objects it is; warn if so."""
        if isinstance(number, int) or number[2] == 0 or number[:2] not in self._unlike:
            return False
        warn(
            f"what the ranks have made under the name {number[1]!r} is not built alike on all of "
            f"them: a call that reaches a part of it brings them a copy of the caller's"
        )
        return True

    def _is(self, key: int, obj: Any) -> Weak | Kept | Part | None:
        known = self._known.get(key)
        return known if known is not None and known() is obj else None

    def note(self, memo: Memo, call: int) -> int:
        """Note what a call brings, by its pickler's memo; return the number of the first of it."""
        with self._lock:  # several threads may submit
            first, self._next = self._next, self._next + len(memo)
            self._take(memo.values(), lambda place: first + place, call)
        return first

    def refer(self, numbers: Iterable[Number], call: int) -> None:
        """Note what a call refers to, and brings along for ranks that have it no longer."""
        with self._lock:
            for number in numbers:
                if (known := self._by_number(number)) is not None:
                    known.used = call
                    self._dropped.pop(number, None)

    def made(
        self, first: int, name: str, value: Any, theirs: Iterable[int | None], call: int
    ) -> None:
        """Note what the ranks have made and bound to a name, the caller's among them.

        Args:
            first: the number of the call's first object.
            name: the name.
            value: what it is in the caller.
            theirs: by rank, what `alike` says of the children's value.
            call: which call it was.
        """
        found = walk(value)
        same = set(theirs) == {alike(found)}
        with self._lock:
            self._take(enumerate(found), lambda place: (first, name, place), call)
            if not same:
                self._unlike.add((first, name))

    def _take(
        self, objects: Iterable[tuple[int, Any]], number_of: Callable[[int], Number], call: int
    ) -> None:
        found = met(objects)
        self.optimizers.note(obj for _, obj in found.weak)
        for place, obj in found.weak:
            self._note(obj, self._weak(obj, number_of(place), call))
        for place, obj in found.loose:
            kept = Kept(obj, number_of(place), call)
            self._note(obj, kept)
            self._held[id(obj)] = kept
        for place, obj, way in found.below:
            if isinstance(owner := self._is(id(way.owner), way.owner), Weak):
                self._forget_earlier(obj)
                part = self._parts.note(obj, number_of(place), owner, way.path)
                part.used = call
                self._note(obj, part)

    def _weak(self, obj: Any, number: Number, call: int) -> Weak:
        weak = Weak(obj, forgetting(self._known, self._ids, self._parts, id(obj)))
        weak.number, weak.used, weak.parts, weak.own = number, call, [], None
        return weak

    def _note(self, obj: Any, known: Weak | Kept | Part) -> None:
        self._forget_earlier(obj)
        self._known[id(obj)] = known
        self._ids[known.number] = id(obj)

    def _forget_earlier(self, obj: Any) -> None:
        if (before := self._known.get(id(obj))) is not None:
            self._forget(before)

    def _by_number(self, number: Number) -> Weak | Kept | Part | None:
        return self._known.get(self._ids.get(number, 0))

    def forget_unheld(self) -> None:
        """Forget lists and dicts that only this holds, and what is in them."""
        with self._lock:  # a session's thread notes what ranks drop
            while alone := nobody_else_holds(self._held):
                for known in filter(None, map(self._held.get, alone)):
                    self._forget(known)
            forget_parts(self._known, self._ids, self._parts.unheld())

    def dropped(self, spans: Iterable[Span], call: int) -> None:
        """Note what one rank has no longer after a call. What none has will travel again.

        A later call, which is on its way, may have brought it once more.
        """
        with self._lock:
            self._drop(spans, call)

    def _drop(self, spans: Iterable[Span], call: int) -> None:
        parts = []
        for start, stop in spans:
            for number in range(start, stop):
                known = self._by_number(number)
                if known is not None and known.used <= call:
                    self._dropped[number] += 1
                    if self._dropped[number] < self._children:
                        continue
                    if isinstance(known, Part):
                        parts.append(known)
                    else:
                        self._forget(known)
        for part in parts:
            owner = None if part.owner is None else part.owner()
            if owner is not None and self.has(owner):
                part.replaced = True
            else:
                self._forget(part)

    def _forget(self, known: Any) -> None:
        key = self._ids.pop(known.number, None)
        self._dropped.pop(known.number, None)
        if key is not None:
            take_out(self._known, key, known)
            take_out(self._held, key, known)
        if isinstance(known, Part):
            self._parts.remove(known)
