"""What holds processes of the caller: it does not travel, nor stop a call that drags it along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ("Absent", "Stays", "choose")


class Stays:
    """What stays in its process, whoever pickles or copies it; a subclass's `_stays` says why."""

    _stays = ""

    def __reduce__(self) -> Any:
        raise TypeError(self._stays)


class Absent:
    """In a rank, the place of such an object: whoever uses it is told that it is not there.

    An instance's attribute, or a variable of the function around, may hold one that nobody uses.
    """

    def __init__(self, kind: str, why: str) -> None:
        vars(self).update(_kind=kind, _why=why)

    def __repr__(self) -> str:
        return f"<a {self._kind} of the caller>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # which Python and its libraries look for in any object
            raise AttributeError(name)
        raise TypeError(vars(self)["_why"])

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise TypeError(self._why)

    def __enter__(self) -> NoReturn:
        raise TypeError(self._why)

    def __exit__(self, *_: object) -> None:
        """Nothing was entered."""

    def __reduce__(self) -> Any:
        return Absent, (self._kind, self._why)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they may travel."""
    return _absent if issubclass(cls, Stays) else None


def _absent(obj: Any) -> Any:
    return Absent, (type(obj).__name__, obj._stays)
