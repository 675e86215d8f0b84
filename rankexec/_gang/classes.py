"""What the ranks of a session have as attributes of classes: one that travels again sets back none.

A method that a notebook patches does travel: what the caller itself has set since the ranks had the
class. What its own rank has set in a call, all ranks have set.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from rankexec._gang.parts import around_collections

__all__ = ("Classes",)


class Classes:
    """The classes, as long as the caller has them."""

    def __init__(self) -> None:
        self._attributes: weakref.WeakKeyDictionary[type, dict[str, Any]] = (
            weakref.WeakKeyDictionary()
        )
        around_collections(self)

    def changed(self, cls: type) -> frozenset[str] | None:
        """Return what the caller has set in a class since; None if the ranks do not have it."""
        before = self._attributes.get(cls)
        if before is None:
            return None
        now = vars(cls).items()
        return frozenset(name for name, value in now if before.get(name, before) is not value)

    def note(self, classes: Iterable[type]) -> None:
        """Note that the ranks have these as they are now."""
        for cls in list(classes):
            self._attributes[cls] = dict(vars(cls))

    def note_again(self) -> None:
        """Note that what the caller's rank has set the others have set too."""
        self.note(self._attributes)

    def forget(self) -> None:
        """Note that they may never have come."""
        self._attributes.clear()

    # An attribute may refer to its class, which would live as long as this holds it.

    def release(self) -> None:
        """Hold no attributes while the garbage collector looks for cycles."""
        for cls, attributes in self._attributes.items():
            own = vars(cls)
            for name, value in attributes.items():
                attributes[name] = _SAME if own.get(name, self) is value else _OTHER

    def take_again(self) -> None:
        """Hold them again."""
        for cls, attributes in self._attributes.items():
            own = vars(cls)
            for name, value in attributes.items():
                if value is _SAME:
                    attributes[name] = own.get(name)


_SAME, _OTHER = object(), object()
