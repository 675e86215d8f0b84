"""How either side knows an object that has travelled, mostly without holding it.

Each of these is called like a weak reference, and returns the object, or None if it is gone.
"""

from __future__ import annotations

import gc
import weakref
from itertools import islice
from typing import Any

from rankexec._gang.identity import Held, Number, Path, find_in, inner_objects
from rankexec._gang.main import main_namespace

__all__ = ("InMain", "Kept", "Part", "Weak")


class Weak(weakref.ref):  # type: ignore[type-arg]  # of anything
    """An object that can be referred to weakly."""

    __slots__ = ("number", "own", "parts", "used")
    number: Number
    own: dict[str, Any] | None
    """Its attributes, if there is a list or dict in them: held, and let go with it."""
    used: int
    """In the caller, the last call that has brought it, or referred to it."""
    parts: list[Part]
    """The lists and dicts that belong to it."""


class Kept(Held):
    """In the caller, a list or another object that cannot, until nobody else holds it."""

    __slots__ = ("number", "used")

    def __init__(self, obj: Any, number: Number, used: int) -> None:
        super().__init__(obj)
        self.number = number
        self.used = used


class Part(Held):
    """A list or dict that belongs to an object: see `parts`.

    Attributes:
        numbers: that it has.
        used: see `Weak`.
        owner: what it belongs to; None: it is by itself.
        path: where it was below that.
        address: its own.
        replaced: in the caller, whether the ranks have its owner, but no longer this.
    """

    __slots__ = ("address", "numbers", "owner", "path", "replaced", "used")

    def __init__(self, obj: Any, number: Number, owner: Weak | None, path: Path) -> None:
        super().__init__(obj)
        self.numbers = [number]
        self.used = 0
        self.owner = owner
        self.path = path
        self.address = id(obj)
        self.replaced = False

    @property
    def number(self) -> Number:
        """The one that it has in the caller."""
        return self.numbers[-1]

    def place(self) -> str:
        """Return where it was, for a message."""
        first, *others = self.path
        return f".{first}" + "".join(f"[{step!r}]" for step in others)


class InMain:
    """In a rank, a list or dict of `__main__`: a cell that deletes it may need its memory.

    That another one may take its place, at the same address, changes nothing: it is what the rank
    has there. Elsewhere it is known by something in it that was in it before.
    """

    __slots__ = ("address", "inner", "path")

    def __init__(self, obj: Any, path: Path) -> None:
        self.address = id(obj)
        self.path = path
        self.inner = [weakref.ref(item) for item in islice(inner_objects(obj), _SEVERAL)]

    def __call__(self) -> Any:
        found = find_in(main_namespace(), self.path)
        return found if id(found) == self.address else self._elsewhere()

    def _elsewhere(self) -> Any:
        before = [item for weak in self.inner if (item := weak()) is not None]
        if before:
            for found in gc.get_objects():
                if id(found) == self.address:
                    now = set(map(id, inner_objects(found)))
                    return found if any(id(item) in now for item in before) else None
        return None


_SEVERAL = 8
