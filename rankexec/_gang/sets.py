"""What a session's call sets in the ranks, as its code tells, and what they have after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ("NOTHING", "Kept", "Sets")


@dataclass(frozen=True)
class Sets:
    """The names of `__main__` that a call sets, as far as its code tells."""

    certain: frozenset[str] = frozenset()
    """All of these, if it does not fail."""
    possible: frozenset[str] = frozenset()
    """Perhaps these, which are more."""
    in_caller: bool = False
    """Whether the caller's rank sets them, too."""

    def also(self, names: Iterable[str]) -> Sets:
        """Return the same with these, which it may set."""
        return replace(self, possible=self.possible.union(names))


NOTHING = Sets()


class Kept(NamedTuple):
    """What a child of a session says at the end of a call about what it has."""

    bound: list[str] = []  # noqa: RUF012  # never changed
    """The names of `__main__` that the call has bound."""
    signs: dict[str, int] = {}  # noqa: RUF012  # the same
    """By such a name, what it was bound to, if the caller has one like it: see `alike`."""
    dropped: list[tuple[int, int]] = []  # noqa: RUF012  # the same
    """The numbers of objects that came from the caller and are gone: from one up to another."""
