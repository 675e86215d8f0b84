"""What all ranks have made in a call, each its own: which object of one rank is which of another.

There is no pickle whose numbers they share. So each rank walks through what it has bound to a name,
in the same order, and sees by a sum whether the others have met the same.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rankexec._gang.identity import UNCHANGING, attributes_of, items_of

__all__ = ("alike", "walk")

_MOST = 10_000
"""Objects that are looked at for one name."""


def walk(value: Any) -> list[Any]:
    """Return what can be changed of a value and of what is below it, in an order that is its own.

    Nothing of the user's runs, as it would in a pickler.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    waiting = deque([value])
    while waiting and len(found) < _MOST:
        obj = waiting.popleft()
        if id(obj) in seen or (isinstance(obj, UNCHANGING) and not isinstance(obj, tuple)):
            continue
        seen[id(obj)] = obj
        found.append(obj)
        waiting.extend(_inner(obj))
    return found


def _inner(obj: Any) -> Iterable[Any]:
    if isinstance(obj, tuple):
        return tuple.__iter__(obj)
    if isinstance(obj, (dict, list)):
        return (item for _, item in items_of(obj))
    tensor: Any = getattr(sys.modules.get("torch"), "Tensor", ())
    inner = list((attributes_of(obj) or {}).values())
    if isinstance(obj, tensor):
        with suppress(Exception):  # there are tensors without
            inner.append(tensor.untyped_storage(obj))
    return inner


def alike(found: Iterable[Any]) -> int:
    """Return a number by which two ranks see whether they have walked the same way."""
    kinds = (f"{type(obj).__module__}.{type(obj).__qualname__}" for obj in found)
    return zlib.crc32("\n".join(kinds).encode())
