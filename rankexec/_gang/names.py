"""Which names of the caller's `__main__` the ranks of a session have, and keep as their own."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, repeat
from operator import is_not
from typing import Any

from rankexec._gang.dynamic import globals_of
from rankexec._gang.modules import main_namespace
from rankexec._gang.namespace import Bound
from rankexec._gang.reading import Reader

__all__ = ("NOTHING", "Going", "Names", "Sets")


@dataclass(frozen=True)
class Sets:
    """The names of `__main__` that a call sets, as far as its code tells."""

    certain: frozenset[str] = frozenset()
    """All of these, if it does not fail."""
    possible: frozenset[str] = frozenset()
    """Perhaps these, which are more."""


NOTHING = Sets()


class Names:
    """What of the caller's `__main__` need not travel again.

    A name that the ranks have is theirs: it does not travel with the next function that reads it,
    unless the caller has bound it anew since. Sending it whenever its value differs would overwrite
    what the ranks have made of it.
    """

    def __init__(self) -> None:
        # What the ranks have, with the caller's value when they got or set it. Held where it cannot
        # be referred to weakly (numbers, lists), as what the user lets go is to be gone.
        self._held: dict[str, Any] = {}
        self._weak: dict[str, weakref.ref[Any]] = {}
        self._anew: dict[str, int] = {}
        """What the caller has bound anew since, and which call was the first to see that."""
        self._missed: set[str] = set()
        """What functions that were sent read, and the caller had not defined."""
        self._calls = 0

    def for_call(self) -> Going:
        """Return what decides for one more call; see what the caller has bound anew."""
        self._calls += 1
        main = main_namespace()
        for name in self._changed():
            self._forget(name)
            if name in main:
                self._anew[name] = self._calls
        return Going(self, self._calls, list(self._anew))

    def are_current(self, name: str, value: Any) -> bool:
        """Return whether the ranks have the name, and this is still the caller's value of it."""
        if self._held.get(name, _ABSENT) is value:
            return True
        reference = self._weak.get(name)
        return reference is not None and value is not None and reference() is value

    def are_theirs(self, names: Iterable[str]) -> None:
        """Note that the ranks have set these names, or been given them."""
        self.have(dict(_values(names)))

    def have(self, values: dict[str, Any]) -> None:
        """Note that the ranks have these names, which have these values in the caller."""
        for name, value in values.items():
            self._forget(name)
            self._anew.pop(name, None)
            try:
                self._weak[name] = weakref.ref(value)
            except TypeError:
                self._held[name] = value
        self._missed -= values.keys()

    def have_set(self, names: Iterable[str], number: int) -> None:
        """Note what this call has set in the children, unless the caller has bound it later."""
        unknown = [n for n in names if n not in self._held and n not in self._weak]
        self.are_theirs(name for name in unknown if self._anew.get(name, 0) <= number)

    @contextmanager
    def following(self, sets: Sets) -> Iterator[None]:
        """Span a call in the caller's own rank: what it sets there does not travel.

        That is new names, what may be among `sets`, and those that the ranks have.
        """
        bound = Bound(sets.possible)
        before = set(self._changed())  # another thread may have bound one, while there was no turn
        try:
            yield
        finally:
            self.are_theirs([*bound.names(), *(set(self._changed()) - before)])

    def _changed(self) -> list[str]:
        """Return those that the ranks have whose values in the caller are others now.

        A session that has made all of a notebook's variables may have 10,000.
        """
        main, held = main_namespace(), self._held.copy()
        values = map(main.get, held, repeat(_ABSENT))
        changed = list(compress(held, map(is_not, held.values(), values)))
        for name, reference in list(self._weak.items()):
            value = reference()
            if value is None or main.get(name) is not value:
                changed.append(name)
        return changed

    def _forget(self, name: str) -> None:
        self._held.pop(name, None)
        self._weak.pop(name, None)

    def sent(self, read: set[str]) -> None:
        """Note what a function reads that is sent."""
        self._missed.update(read - main_namespace().keys())

    def may_lack(self) -> bool:
        """Return whether functions that the ranks have may read what they have not."""
        return bool(self._anew) or not self._missed.isdisjoint(main_namespace())

    def never_came(self, values: dict[str, Any]) -> None:
        """Note that the ranks have not got these, after all."""
        for name, value in values.items():
            if self.are_current(name, value):
                self._forget(name)


def _values(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values of those names that the caller has, whatever its other threads do."""
    main = main_namespace()
    for name in list(names):
        value = main.get(name, _ABSENT)
        if value is not _ABSENT:
            yield name, value


_ABSENT = object()


class Going:
    """The names that travel with one call.

    Attributes:
        watched: what the ranks have, and the caller has bound anew.
        values: the names, when it is packed.
    """

    def __init__(self, names: Names, number: int, watched: list[str]) -> None:
        self.watched = watched
        self.values: dict[str, Any] = {}
        self._names = names
        self._number = number
        self._reader = Reader()
        self._looked: set[str] = set()
        self._lacking: dict[str, Any] = {}

    def leave_out(self, function: types.FunctionType, reached: dict[str, Any]) -> None:
        """Take out of what a function reads all that the ranks have.

        What these are read in turn is added if the ranks lack it.
        """
        self._names.sent(globals_of(function))
        theirs = [name for name in reached if self._names.are_current(name, reached[name])]
        for name in theirs:
            del reached[name]
        if self._names.may_lack():
            self._look_through(theirs)
            reached.update(self._lacking)  # pickled once, however often it is named
        self.values.update(reached)

    def _look_through(self, names: Iterable[str]) -> None:
        """Find what is read by what the ranks have, and they have not."""
        waiting = set(names)
        while waiting := waiting - self._looked:
            self._looked |= waiting
            found: set[str] = set()
            for name, value in _values(waiting):
                if self._names.are_current(name, value):
                    found |= self._reader.names_read_by(value)
                else:
                    self._lacking[name] = value
            waiting = found

    def packed(self) -> None:
        """Note that the ranks will have them: calls are run in their order."""
        self._names.have(self.values)

    def ended(self, names: Iterable[str]) -> None:
        """Note that the ranks have had the call, and have set these names in it."""
        self._names.have_set(names, self._number)

    def lost(self) -> None:
        """Note that the call never arrived."""
        self._names.never_came(self.values)
