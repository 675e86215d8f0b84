"""Classes that came by value are made and filled without running what came with them.

That ran where the class was defined, on a class with content; what it did there travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from cloudpickle import cloudpickle as _cloudpickle

__all__ = ("came_by_value", "quiet", "without_init_subclass")


def came_by_value(cls: type) -> bool:
    """Return whether a class is not imported here."""
    return cls in _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS


def _passed_on(cls: Any) -> Any:
    """Return an `__init_subclass__` that runs the library's behind it."""

    def init_subclass(subclass: Any, /, **_: Any) -> None:
        super(cls, subclass).__init_subclass__()

    return classmethod(init_subclass)


def without_init_subclass(bases: Iterable[type]) -> AbstractContextManager[None]:
    """Let the bases' `__init_subclass__` do nothing, but for the libraries'."""
    parents = {parent for base in bases for parent in base.__mro__}
    return quiet(parents, "__init_subclass__", _passed_on)


@contextmanager
def quiet(classes: Iterable[type], method: str, make: Any) -> Iterator[None]:
    """Replace a method of those classes that came by value."""
    replaced = {c: vars(c)[method] for c in classes if came_by_value(c) and method in vars(c)}
    for cls in replaced:
        type.__setattr__(cls, method, make(cls))
    try:
        yield
    finally:
        for cls, own in replaced.items():
            type.__setattr__(cls, method, own)
