"""Which names of the caller's `__main__` the ranks of a session have, and keep as their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, compress, repeat
from operator import is_not
from typing import Any

from rankexec._gang.modules import main_namespace

__all__ = ("Going", "Names")

_MISSING = object()


class Names:
    """What of the caller's `__main__` need not travel again.

    A name that the ranks have is theirs: it does not travel with the next function that reads it,
    unless the caller has bound it anew since. Sending it whenever its value differs would overwrite
    what the ranks have made of it.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def for_call(self) -> Going:
        """Return what decides for one more call; forget what the caller has bound anew."""
        main = main_namespace()
        for name, value in list(self.known.items()):
            if main.get(name, _MISSING) is not value:
                del self.known[name]
        return Going(self)

    def are_theirs(self, names: Iterable[str]) -> None:
        """Note that the ranks have set these names by themselves, or been given them."""
        main = main_namespace()
        self.known.update({name: main[name] for name in names if name in main})

    @contextmanager
    def following(self) -> Iterator[None]:
        """Span a call in the caller's own rank: what it sets there, the other ranks set too."""
        before = dict(main_namespace())
        try:
            yield
        finally:
            self.are_theirs(_bound_since(before, main_namespace()))


def _bound_since(before: dict[str, Any], main: dict[str, Any]) -> list[str]:
    """Return which names of a namespace have another value than in its copy, or had none.

    A notebook may have 10,000 of them: without a tuple for each, and mostly without looking it up.
    """
    now = main.copy()  # other threads may be adding names
    names = list(now)
    if names[: len(before)] == list(before):  # none was deleted: they are in the same order
        old: Iterable[Any] = chain(before.values(), repeat(_MISSING))
    else:
        old = map(before.get, names, repeat(_MISSING))
    return list(compress(names, map(is_not, now.values(), old)))


class Going:
    """The names that travel with one call."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._values: dict[str, Any] = {}

    def leave_out(self, reached: dict[str, Any]) -> None:
        """Take out of what a function reads all that the ranks have."""
        for name, value in list(reached.items()):
            if self._names.known.get(name, _MISSING) is value:
                del reached[name]
            else:
                self._values[name] = value

    def packed(self) -> None:
        """Note that the ranks will have them: calls are run in their order."""
        self._names.known.update(self._values)

    def lost(self) -> dict[str, Any]:
        """Note that the call never arrived; return what the ranks lack therefore."""
        lacking = {}
        for name, value in self._values.items():
            if self._names.known.get(name, _MISSING) is value:
                lacking[name] = self._names.known.pop(name)
        return lacking
