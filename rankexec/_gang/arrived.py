"""Which objects of the caller's a rank of a session has: for what travels later they are the same.

The rank's side; the caller's is in `travelled`.
"""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rankexec._gang.identity import Held, Way, find, met, nobody_else_holds
from rankexec._gang.travelled import Reference, Span

__all__ = ("Arrived", "Spare")


class Spare(NamedTuple):
    """Some objects by value, for a rank that has them no longer. It is unpacked only there."""

    stream: bytes
    """Of their list."""
    buffers: tuple[Any, ...]
    numbers: tuple[tuple[int, int], ...]
    """Of what is in the stream and has travelled before: its number in the memo, and its own."""
    what: str
    """For the error: what it is."""


class _Weak(weakref.ref):  # type: ignore[type-arg]  # of anything
    __slots__ = ("number",)
    number: int


class Arrived:
    """The objects that have come, as long as anything in this process refers to them."""

    def __init__(self) -> None:
        self._own: dict[int, _Weak | Held] = {}
        self._held: dict[int, Held] = {}
        self._dropped: list[int] = []
        self._young: list[int] = []
        """What the present call has brought."""

    def load(self, stream: Any, buffers: Iterable[Any], first: int) -> Any:
        """Return what a call's stream holds, whose objects are numbered from `first` on."""
        unpickler = _Unpickler(self, stream, buffers)
        value = unpickler.load()
        self._take(unpickler, lambda number: first + number)
        return value

    def _take(self, unpickler: _Unpickler, number_of: Callable[[int], int | None]) -> None:
        found = met(unpickler.memo.copy().items())
        for place, obj in found.weak:
            if (number := number_of(place)) is not None:
                weak = _Weak(obj, _dropping(self._own, self._dropped))
                weak.number = number
                self._own[number] = weak
                self._young.append(number)
        for place, obj in found.loose:
            if (number := number_of(place)) is not None:
                self._own[number] = self._held[number] = Held(obj)
                self._young.append(number)

    def has(self, number: int) -> bool:
        """Return whether the object with that number is there."""
        return self._find(Reference(number)) is not None

    def _find(self, reference: Reference) -> Any:
        known = self._own.get(reference.number)
        obj = None if known is None else known()
        return find(Way(obj, reference.path)) if reference.path and obj is not None else obj

    def unpack(self, spare: Spare) -> list[Any]:
        """Return what a spare holds.

        Raises:
            RuntimeError: some of it is here: with the rest it would be there twice.
        """
        if any(self.has(number) for _, number in spare.numbers):
            raise RuntimeError(
                f"{spare.what} was let go on this rank by a call that ran before, but not all that "
                f"belongs to it; wait for that call's result before you submit the next one"
            )
        unpickler = _Unpickler(self, spare.stream, spare.buffers)
        value: list[Any] = unpickler.load()
        self._take(unpickler, dict(spare.numbers).get)
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
        return _spans(dropped, self._own)

    def _drop_unheld(self) -> None:
        while alone := nobody_else_holds(self._held):
            for number in alone:
                del self._held[number], self._own[number]
            self._dropped.extend(alone)


def _dropping(own: dict[int, Any], dropped: list[int]) -> Callable[[Any], None]:
    def drop(weak: _Weak) -> None:
        if weak.number in own and own[weak.number] is weak:
            del own[weak.number]
            dropped.append(weak.number)

    return drop


def _spans(numbers: Sequence[int], kept: dict[int, Any]) -> list[Span]:
    """Return sorted numbers as few spans; numbers that nobody has may be in them."""
    spans: list[Span] = []
    start = stop = -1
    for number in numbers:
        near = start >= 0 and number - stop < _NEAR
        if near and not any(between in kept for between in range(stop, number)):
            stop = number + 1
            continue
        if start >= 0:
            spans.append((start, stop))
        start, stop = number, number + 1
    return [*spans, (start, stop)] if start >= 0 else spans


_NEAR = 100


class _Unpickler(pickle.Unpickler):
    """Finds what the caller says that this rank has."""

    def __init__(self, arrived: Arrived, stream: Any, buffers: Iterable[Any]) -> None:
        super().__init__(io.BytesIO(stream), buffers=buffers)
        self._arrived = arrived
        self._spares: dict[int, tuple[Spare, list[Any]]] = {}

    def persistent_load(self, pid: Any) -> Any:
        number, path, spare, place = pid
        found = self._arrived._find(Reference(number, path))
        if found is not None:
            return found
        if id(spare) not in self._spares:
            self._spares[id(spare)] = spare, self._arrived.unpack(spare)
        return self._spares[id(spare)][1][place]
