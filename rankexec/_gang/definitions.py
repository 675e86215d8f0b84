"""What the ranks of a session have of functions and classes that have travelled by value.

One that travels again is the ranks' own, and sets back nothing there. A method that a notebook
patches does travel: what the caller itself has set since the ranks had the class. What its own rank
has set in a call, all ranks have set.
"""

from __future__ import annotations

import itertools
import threading
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from rankexec._gang.parts import around_collections

__all__ = ("Definition", "Definitions", "Known")

Definition: TypeAlias = "type | types.FunctionType"


class Known(NamedTuple):
    """A definition on its way: its number, and what the caller has set since; None: all."""

    number: int
    only: frozenset[str] | None


class Definitions:
    """The functions and classes, as long as the caller has them."""

    def __init__(self) -> None:
        self._attributes: weakref.WeakKeyDictionary[Definition, dict[str, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._numbers: weakref.WeakKeyDictionary[Definition, int] = weakref.WeakKeyDictionary()
        self._count = itertools.count()
        self._lock = threading.RLock()  # a finalizer may submit
        around_collections(self)

    def known(self, definition: Definition) -> Known:
        """Return what of a definition goes along."""
        with self._lock:
            number = self._numbers.setdefault(definition, next(self._count))
            before = self._attributes.get(definition)
        if before is None:
            return Known(number, None)
        now = _attributes_of(definition).items()
        return Known(number, frozenset(n for n, value in now if before.get(n, before) is not value))

    def note(self, definitions: Iterable[Definition]) -> None:
        """Note that the ranks have these as they are now."""
        with self._lock:
            for definition in definitions:
                self._attributes[definition] = dict(_attributes_of(definition))

    def note_again(self) -> None:
        """Note that what the caller's rank has set the others have set too."""
        with self._lock:
            self.note([*self._attributes])

    def forget(self) -> None:
        """Note that they may never have come."""
        with self._lock:
            self._attributes.clear()

    # An attribute may refer to its class, which would live as long as this holds it.

    def release(self) -> None:
        """Hold no attributes while the garbage collector looks for cycles."""
        for definition, attributes in [*self._attributes.items()]:
            own = _attributes_of(definition)
            for name, value in attributes.items():
                attributes[name] = _SAME if own.get(name, self) is value else _OTHER

    def take_again(self) -> None:
        """Hold them again."""
        for definition, attributes in [*self._attributes.items()]:
            own = _attributes_of(definition)
            for name, value in attributes.items():
                if value is _SAME:
                    attributes[name] = own.get(name)


_SAME, _OTHER = object(), object()


def _attributes_of(definition: Definition) -> Mapping[str, Any]:
    if isinstance(definition, type):
        return vars(definition)
    return {**vars(definition), **{name: getattr(definition, name) for name in _OF_FUNCTIONS}}


_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")
