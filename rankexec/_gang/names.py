"""Which names of the caller's `__main__` the ranks of a session have, and keep as their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from rankexec._gang.modules import main_namespace
from rankexec._gang.reading import names_read_by

__all__ = ("Going", "Names")

_ANEW = object()
"""In place of a value: the caller has bound the name anew since the ranks had it, or has not got
it."""


class Names:
    """What of the caller's `__main__` need not travel again.

    A name that the ranks have is theirs: it does not travel with the next function that reads it,
    unless the caller has bound it anew since. Sending it whenever its value differs would overwrite
    what the ranks have made of it.

    Attributes:
        known: by name that the ranks have, the value that the caller had when they got or set it.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def for_call(self) -> Going:
        """Return what decides for one more call; see what the caller has bound anew."""
        main = main_namespace()
        for name, value in list(self.known.items()):
            if main.get(name, _ANEW) is not value:
                self.known[name] = _ANEW
        return Going(self)

    def are_theirs(self, names: Iterable[str]) -> None:
        """Note that the ranks have set these names, or been given them."""
        main = main_namespace()
        self.known.update({name: main.get(name, _ANEW) for name in names})

    @contextmanager
    def following(self, names: Iterable[str]) -> Iterator[None]:
        """Span a call in the caller's own rank: what it sets there does not travel.

        It is not looked for among all variables, of which a notebook may have 10,000. It is new
        ones, which are the last in their namespace; `names`; and those that the ranks have.
        """
        main = main_namespace()
        size, before = len(main), {name: main.get(name, _ANEW) for name in names}
        # Another thread may have bound one anew since `for_call`, while this one had no turn.
        theirs = [name for name, value in list(self.known.items()) if main.get(name) is value]
        try:
            yield
        finally:
            new = list(islice(reversed(main), max(0, len(main) - size)))
            changed = [name for name, value in before.items() if main.get(name, _ANEW) is not value]
            self.are_theirs([*new, *changed, *theirs])

    def after_call(self, bound: Iterable[str], names: Iterable[str]) -> None:
        """Note what a call has set in the children.

        Args:
            bound: what has another value there than before.
            names: what it has set for certain, where that is known: if the value is what it was
                before, nobody sees it.
        """
        there = [name for name in names if name in self.known]
        self.are_theirs(name for name in (*bound, *there) if self.known.get(name, _ANEW) is _ANEW)


class Going:
    """The names that travel with one call."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._values: dict[str, Any] = {}

    def leave_out(self, reached: dict[str, Any]) -> None:
        """Take out of what a function reads all that the ranks have.

        What these are read in turn is added if the ranks lack it.
        """
        theirs = {name: value for name, value in reached.items() if self._have(name, value)}
        for name in theirs:
            del reached[name]
        for name, value in self._lacking(theirs):
            reached.setdefault(name, value)
        self._values.update(reached)

    def _have(self, name: str, value: Any) -> bool:
        return self._names.known.get(name, _ANEW) is value

    def _lacking(self, theirs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield what is read by what the ranks have, and they have not."""
        main = main_namespace()
        waiting, seen = list(theirs.values()), set(theirs)
        while waiting:
            for name in names_read_by(waiting.pop()) - seen:
                seen.add(name)
                if name not in main:
                    continue
                if self._have(name, main[name]):
                    waiting.append(main[name])
                else:
                    yield name, main[name]

    def packed(self) -> None:
        """Note that the ranks will have them: calls are run in their order."""
        self._names.known.update(self._values)

    def lost(self) -> dict[str, Any]:
        """Note that the call never arrived; return what the ranks lack therefore."""
        lacking = {}
        for name, value in self._values.items():
            if self._names.known.get(name, _ANEW) is value:
                lacking[name] = self._names.known.pop(name)
        return lacking
