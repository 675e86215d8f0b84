"""How either side knows an object that has travelled, mostly without holding it.

Each of these is called like a weak reference, and returns the object, or None if it is gone.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from rankexec._gang.identity import Held, Number, Path, Way, find, find_in
from rankexec._gang.main import main_namespace

__all__ = ("Below", "InMain", "Kept", "Reference", "Weak")


class Reference(NamedTuple):
    """What stands for an object that the ranks have."""

    number: Number
    """Of the object, or of the one that it belongs to."""
    path: Path = ()


class Weak(weakref.ref):  # type: ignore[type-arg]  # of anything
    """An object that can be referred to weakly."""

    __slots__ = ("number", "parts", "used")
    number: Number
    used: int
    """In the caller, the last call that has brought it, or referred to it."""
    parts: list[int]
    """In the caller, the ids of what is known by a way from here."""

    def refer(self) -> Reference:
        """Return what stands for it."""
        return Reference(self.number)


class Kept(Held):
    """In the caller, a list or another object that cannot, until nobody else holds it."""

    __slots__ = ("number", "used")

    def __init__(self, obj: Any, number: Number, used: int) -> None:
        super().__init__(obj)
        self.number = number
        self.used = used

    def refer(self) -> Reference:
        """Return what stands for it."""
        return Reference(self.number)


class Below:
    """A list or dict that belongs to an object."""

    __slots__ = ("owner", "path")

    def __init__(self, owner: Any, path: Path) -> None:
        self.owner = owner
        self.path = path

    def __call__(self) -> Any:
        return find(Way(self.owner(), self.path))

    def refer(self) -> Reference:
        """Return what stands for it, in the caller."""
        return Reference(self.owner.number, self.path)


class InMain:
    """In a rank, a list or dict of `__main__`: a cell that deletes it may need its memory.

    That another one may take its place, at the same address, changes nothing: it is what the rank
    has there.
    """

    __slots__ = ("address", "path")

    def __init__(self, obj: Any, path: Path) -> None:
        self.address = id(obj)
        self.path = path

    def __call__(self) -> Any:
        found = find_in(main_namespace(), self.path)
        return found if id(found) == self.address else None
