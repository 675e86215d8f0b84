"""Which objects of the caller's a rank of a session has: for what travels later they are the same.

The rank's side; the caller's is in `travelled`.
"""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from rankexec._gang.alike import alike, walk
from rankexec._gang.identity import (
    Held,
    Number,
    Path,
    below,
    inner_objects,
    met,
    nobody_else_holds,
)
from rankexec._gang.known import InMain, Part, Weak
from rankexec._gang.main import main_namespace
from rankexec._gang.parts import Parts, take_out
from rankexec._gang.spans import Span, spans_of
from rankexec._gang.within import Within, follow

__all__ = ("Arrived", "Spare")


class Spare(NamedTuple):
    """Some objects by value, for a rank that has them no longer. It is unpacked only there."""

    stream: bytes
    """Of their list."""
    buffers: tuple[Any, ...]
    numbers: bytes
    """Pickled: of what is in the stream and has travelled before, by its number in the memo."""
    what: str
    """For the error: what it is."""


class Arrived:
    """The objects that have come, as long as anything in this process refers to them."""

    def __init__(self) -> None:
        self._own: dict[Number, Weak | Held | InMain] = {}
        self._held: dict[Number, Held] = {}
        self._parts = Parts()
        self._in_main: dict[Number, InMain] = {}
        self._looked = 0
        """How many of these there were when it was looked for those that are gone."""
        self._dropped: list[int] = []
        self._forget_with = _dropping(self._own, self._parts, self._dropped)
        self._young: list[Number] = []
        """What the present call has brought."""
        self._first = 0

    def load(self, stream: Any, buffers: Iterable[Any], first: int) -> Any:
        """Return what a call's stream holds, whose objects are numbered from `first` on."""
        self._first = first
        unpickler = _Unpickler(self, stream, buffers)
        value = unpickler.load()
        self._take(unpickler.memo.copy().items(), lambda place: first + place)
        return value

    def made(self, names: Iterable[str]) -> dict[str, int]:
        """Number what the present call has bound to these names; return what is `alike` of each."""
        first, main = self._first, main_namespace()
        signs = {}
        for name in names:
            if found := walk(main.get(name)):
                signs[name] = alike(found)
                self._take(enumerate(found), partial(_place, first, name))
        return signs

    def _take(
        self, objects: Iterable[tuple[int, Any]], number_of: Callable[[int], Number | None]
    ) -> None:
        found = met(objects)
        owners: dict[int, Weak] = {}
        for place, obj in found.weak:
            if (number := number_of(place)) is not None:
                weak = Weak(obj, self._forget_with)
                weak.number, weak.parts, weak.own = number, [], None
                self._own[number] = owners[id(obj)] = weak
                self._young.append(number)
        for place, obj, way in found.below:
            self._note_part(obj, number_of(place), owners.get(id(way.owner)), way.path)
        loose = {id(obj): (place, obj) for place, obj in found.loose}
        for (place, obj), path in below(_holding(loose), loose):
            if len(path) > 1 and not any(True for _ in inner_objects(obj)):
                self._note_part(obj, number_of(place), None, path)
            elif (number := number_of(place)) is not None:
                self._own[number] = self._in_main[number] = InMain(obj, path)
        for place, obj in loose.values():
            if (number := number_of(place)) is not None:
                self._own[number] = self._held[number] = Held(obj)
                self._young.append(number)
        self._forget_replaced()

    def _note_part(self, obj: Any, number: Number | None, owner: Weak | None, path: Path) -> None:
        if number is not None:
            self._own[number] = self._parts.note(obj, number, owner, path)

    def _forget_replaced(self) -> None:
        """Forget lists and dicts that are no longer where they were, when there are many."""
        if len(self._in_main) > 2 * self._looked + _FEW:
            for number, known in list(self._in_main.items()):
                if known() is None:
                    del self._in_main[number], self._own[number]
            self._looked = len(self._in_main)

    def has(self, number: Number) -> bool:
        """Return whether the object with that number is there."""
        return self.find(number) is not None

    def find(self, number: Number, way: Within | None = None) -> Any:
        """Return what has a number, or is numbered now and there this way; None without."""
        if (known := self._own.get(number)) is not None or way is None:
            return None if known is None else known()
        found = follow(way, self.find, (own() for own in self._own.values()))
        if found is not None:
            self._take([(0, found)], lambda _: number)
        return found

    def unpack(self, spare: Spare) -> list[Any]:
        """Return what a spare holds.

        Raises:
            RuntimeError: some of it is here: with the rest it would be there twice.
        """
        numbers: dict[int, Number] = pickle.loads(spare.numbers)
        gone = [number for number in numbers.values() if not self.has(number)]
        if len(gone) < len(numbers):
            for number in gone:
                _drop(number, self._dropped)
            raise RuntimeError(
                f"{spare.what} was let go on this rank by a call that ran before, but not all that "
                f"belongs to it; wait for that call's result before you submit the next one"
            )
        unpickler = _Unpickler(self, spare.stream, spare.buffers)
        value: list[Any] = unpickler.load()
        self._take(unpickler.memo.copy().items(), numbers.get)
        return value

    def dropped(self, *, collect: bool) -> list[Span]:
        """Return the numbers of what this rank has no longer, since it was asked last.

        With `collect`, what a call has brought and only cycles hold is gone: a call with the same
        argument is to get the caller's once more, whenever the collector runs by itself.
        """
        self._drop_unheld()
        if collect and not self._own.keys().isdisjoint(self._young):
            gc.collect()
            self._drop_unheld()
        self._young.clear()
        dropped = sorted(self._dropped)
        self._dropped.clear()
        return spans_of(dropped, self._own)

    def _drop_unheld(self) -> None:
        while alone := nobody_else_holds(self._held):
            for number in alone:
                del self._held[number], self._own[number]
                _drop(number, self._dropped)
        _forget_parts(self._own, self._dropped, self._parts.unheld())


_FEW = 100


def _holding(loose: dict[int, Any]) -> dict[str, Any]:
    """Return those names of `__main__` whose values are among these."""
    main = list(main_namespace().items()) if loose else ()
    return {name: value for name, value in main if id(value) in loose}


def _place(first: int, name: str, place: int) -> Number:
    return first, name, place


def _dropping(
    own: dict[Number, Any], parts: Parts, dropped: list[int]
) -> Callable[[weakref.ref[Any]], None]:
    """Return what is called when an object is gone; it holds the tables, not who has them."""

    def drop(weak: Any) -> None:
        if take_out(own, weak.number, weak):
            _drop(weak.number, dropped)
        _forget_parts(own, dropped, parts.without(weak))

    return drop


def _forget_parts(own: dict[Number, Any], dropped: list[int], parts: Iterable[Part]) -> None:
    for part in parts:
        for number in part.numbers:
            if take_out(own, number, part):
                _drop(number, dropped)


def _drop(number: Number, dropped: list[int]) -> None:
    if isinstance(number, int):  # of what a rank has made the caller's own tells
        dropped.append(number)


class _Unpickler(pickle.Unpickler):
    """Finds what the caller says that this rank has."""

    def __init__(self, arrived: Arrived, stream: Any, buffers: Iterable[Any]) -> None:
        super().__init__(io.BytesIO(stream), buffers=buffers)
        self._arrived = arrived
        self._spares: dict[int, tuple[Spare, list[Any]]] = {}

    def persistent_load(self, pid: Any) -> Any:
        number, spare, place, way = pid
        found = self._arrived.find(number, way)
        if found is not None:
            return found
        if spare is None:
            _drop(number, self._arrived._dropped)
            raise RuntimeError(
                "an object that has travelled before is no longer on this rank, and as it is now "
                "in the caller it cannot travel"
            )
        if id(spare) not in self._spares:
            self._spares[id(spare)] = spare, self._arrived.unpack(spare)
        return self._spares[id(spare)][1][place]
