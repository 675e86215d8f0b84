"""What names of this process's `__main__` were bound to, and which are bound anew since."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from itertools import compress, islice, repeat
from operator import is_not
from typing import Any

from rankexec._gang.main import main_namespace

__all__ = ("Bound", "Values", "values_of")


class Values:
    """The values of some names: weakly where that can be, as what the user lets go is to be gone.

    Numbers, lists and dicts are held.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._weak: dict[str, weakref.ref[Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._weak

    def note(self, name: str, value: Any) -> None:
        """Note the value of a name."""
        self.forget(name)
        try:
            self._weak[name] = weakref.ref(value)
        except TypeError:
            self._held[name] = value

    def forget(self, name: str) -> None:
        """Forget a name, if it was noted."""
        self._held.pop(name, None)
        self._weak.pop(name, None)

    def has(self, name: str, value: Any) -> bool:
        """Return whether this very value was noted."""
        if self._held.get(name, _ABSENT) is value:
            return True
        reference = self._weak.get(name)
        return reference is not None and value is not None and reference() is value

    def changed(self) -> list[str]:
        """Return those whose values in `__main__` are others now, or that are gone.

        There may be 10,000, in a session that has made all of a notebook's variables.
        """
        main, held = main_namespace(), self._held.copy()
        values = map(main.get, held, repeat(_ABSENT))
        changed = list(compress(held, map(is_not, held.values(), values)))
        for name, reference in list(self._weak.items()):
            value = reference()
            if value is None or main.get(name) is not value:
                changed.append(name)
        return changed


class Bound:
    """Which names a call binds: new ones, and of the others those that are watched.

    Not all are compared: a notebook may have 10,000.
    """

    def __init__(self, watched: Iterable[str]) -> None:
        self._before = list(main_namespace())
        self._values = Values()
        for name, value in values_of(watched):
            self._values.note(name, value)

    def names(self) -> list[str]:
        """Return them, at the end of the call."""
        changed = [name for name in self._values.changed() if name in main_namespace()]
        return [name for name in (*self._new(), *changed) if type(name) is str]  # a dict takes all

    def _new(self) -> list[str]:
        before, main = self._before, main_namespace()
        more = len(main) - len(before)
        newest = list(islice(reversed(main), max(0, more) + _ENOUGH))
        if more >= 0 and newest[more:] == before[: -_ENOUGH - 1 : -1]:  # nothing was deleted
            return newest[:more]
        places = {name: place for place, name in enumerate(before)}
        now, last = list(main), -1
        for kept, name in enumerate(now):  # what is left of them is in the same order
            if places.get(name, -1) <= last:
                return now[kept:]
            last = places[name]
        return []


_ENOUGH = 16
"""Names that a call will not delete, and set again in the same order, to put one before them."""


def values_of(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values of those names that `__main__` has, whatever other threads do to it."""
    main = main_namespace()
    for name in list(names):
        value = main.get(name, _ABSENT)
        if value is not _ABSENT:
            yield name, value


_ABSENT = object()
