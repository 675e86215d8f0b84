"""Which names of the caller's `__main__` the ranks of a session have, and keep as their own."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rankexec._gang.bound import Bound, Values, values_of
from rankexec._gang.definitions import Definitions
from rankexec._gang.dynamic import globals_of
from rankexec._gang.identity import Number
from rankexec._gang.main import main_namespace
from rankexec._gang.output import warn
from rankexec._gang.reading import names_read_by
from rankexec._gang.sets import Kept, Sets
from rankexec._gang.travelled import Travelled
from rankexec._gang.within import Within

__all__ = ("Going", "Names")


class Names:
    """What of the caller's `__main__` need not travel again.

    A name that the ranks have is theirs: it does not travel with the next function that reads it,
    unless the caller has bound it anew since. Sending it whenever its value differs would overwrite
    what the ranks have made of it.

    Args:
        world_size: how many ranks there are.
        caller_rank: which of them is the caller, and sets the same names.

    Attributes:
        objects: what the ranks have of the values.
        definitions: what they have of functions and classes.
    """

    def __init__(self, world_size: int = 1, caller_rank: int | None = None) -> None:
        self._in_caller = caller_rank is not None
        self.objects = Travelled(world_size - self._in_caller)
        self.definitions = Definitions()
        self._theirs = Values()
        """What the ranks have, with the caller's value when they got or set it."""
        self._pulled: dict[str, list[weakref.ref[Any]]] = {}
        """The last copies of what the ranks have under a name; of lists and numbers none."""
        self._reads: dict[str, set[str]] = {}
        """Of those, what they read in turn, where it was looked for."""
        self._anew: dict[str, int] = {}
        """What the caller has bound anew since, and which call was the first to see that."""
        self._missed: set[str] = set()
        """What functions that were sent read, and the caller had not defined."""
        self._calls = 0

    def for_call(self, sets: Sets) -> Going:
        """Return what decides for one more call; see what the caller has bound anew."""
        self._calls += 1
        main = main_namespace()
        for name in self._theirs.changed():
            self._theirs.forget(name)
            if name in main:
                self._anew[name] = self._calls
        sets = replace(sets.also(self._anew), in_caller=self._in_caller)
        return Going(self, self._calls, sets)

    def are_current(self, name: str, value: Any) -> bool:
        """Return whether the ranks have the name, and this is still the caller's value of it."""
        return self._theirs.has(name, value)

    def are_theirs(self, names: Iterable[str]) -> None:
        """Note that the ranks have set these names, or been given them."""
        self.have(dict(values_of(names)))

    def have(self, values: dict[str, Any]) -> None:
        """Note that the ranks have these names, which have these values in the caller."""
        for name, value in values.items():
            self._theirs.note(name, value)
            self._reads.pop(name, None)
            self._anew.pop(name, None)
        self._missed -= values.keys()

    def have_set(self, names: Iterable[str], number: int) -> None:
        """Note what this call has set in the children, unless the caller has bound it later."""
        unknown = [name for name in names if name not in self._theirs]
        self.are_theirs(name for name in unknown if self._anew.get(name, 0) <= number)

    def warn_of_theirs(self, names: dict[str, Any]) -> None:
        """Warn of names that are pushed with values that the ranks have."""
        for name, value in names.items():
            if self.are_current(name, value) and self.objects.has(value):
                warn(
                    f"the ranks have {name!r} already, and keep it as it is there: what was "
                    f"changed in the caller's stays the caller's; push a copy of it"
                )

    def pulled(self, name: str, values: Iterable[Any]) -> None:
        """Note what copies the caller has got of what the ranks have under a name."""
        own = main_namespace().get(name)  # a rank that is the caller gives what it has
        weak = (value for value in values if value is not own and type(value).__weakrefoffset__)
        self._pulled[name] = [weakref.ref(value) for value in weak]

    def warn_of_pulled(self, values: dict[str, Any]) -> None:
        """Warn of copies that replace, by their own names, what the ranks have."""
        for name in self._pulled.keys() & values.keys():
            if any(copy() is values[name] for copy in self._pulled[name]):
                warn(
                    f"{name!r} is a copy that was pulled, and replaces what the ranks have under "
                    f"that name: an optimizer, for instance, goes on with the parameters it has. "
                    f"Bind what you pull to another name, or push it"
                )

    @contextmanager
    def following(self, sets: Sets, going: Going | None) -> Iterator[None]:
        """Span a call in the caller's own rank: what it sets there does not travel.

        That is new names, what may be among `sets`, and those that the ranks have.
        """
        bound = Bound(sets.possible)
        before = set(self._theirs.changed())  # by other threads, while this one had no turn
        try:
            yield
        finally:
            names = [*bound.names(), *(set(self._theirs.changed()) - before)]
            self.are_theirs(names)
            if going is not None:
                going.made(names)

    def read_by(self, name: str, value: Any) -> set[str]:
        """Return what this value, which the ranks have, reads; it is looked for once."""
        if name not in self._reads:
            self._reads[name] = names_read_by(value)
        return self._reads[name]

    def sent(self, read: set[str]) -> None:
        """Note what a function reads that is sent."""
        self._missed.update(read - main_namespace().keys())

    def may_lack(self) -> bool:
        """Return whether functions that the ranks have may read what they have not."""
        return bool(self._anew) or not self._missed.isdisjoint(main_namespace())

    def never_came(self, values: dict[str, Any]) -> None:
        """Note that the ranks have not got these, after all."""
        for name, value in values.items():
            if self.are_current(name, value):
                self._theirs.forget(name)


class Going:
    """The names that travel with one call.

    Attributes:
        sets: what the call may set, and what the caller has bound anew since the ranks had it.
        values: the names, when it is packed.
        objects: what the ranks have of the values.
        definitions: what they have of functions and classes.
        ways: to what they have made within these, by the numbers that this has got now.
        nowhere: the ids of what is in these, and nobody can say where.
        first: the number of the first object that travels, when it is packed.
        number: of the call, among those of the session.
    """

    def __init__(self, names: Names, number: int, sets: Sets) -> None:
        self.sets = sets
        self.values: dict[str, Any] = {}
        self.objects = names.objects
        self.definitions = names.definitions
        self.ways: dict[Number, Within] = {}
        self.nowhere: set[int] = set()
        self.first = 0
        self._names = names
        self.number = number
        self._kept: Sequence[Kept] = ()
        self._apart = False
        self._looked: set[str] = set()
        self._lacking: dict[str, Any] = {}

    def leave_out(self, function: types.FunctionType, reached: dict[str, Any]) -> None:
        """Take out of what a function reads all that the ranks have.

        What these are read in turn is added if the ranks lack it.
        """
        self._names.sent(globals_of(function))
        theirs = [name for name in reached if self._names.are_current(name, reached[name])]
        for name in theirs:
            del reached[name]
        if self._names.may_lack():
            self._look_through(theirs)
            reached.update(self._lacking)  # pickled once, however often it is named
        self.values.update(reached)
        if self._apart:
            reached.clear()

    @contextmanager
    def without_names(self) -> Iterator[None]:
        """Let functions be packed by themselves: what they read travels beside them."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def _look_through(self, names: Iterable[str]) -> None:
        """Find what is read by what the ranks have, and they have not."""
        waiting = set(names)
        while waiting := waiting - self._looked:
            self._looked |= waiting
            found: set[str] = set()
            for name, value in values_of(waiting):
                if self._names.are_current(name, value):
                    found |= self._names.read_by(name, value)
                else:
                    self._lacking[name] = value
            waiting = found

    def packed(self) -> None:
        """Note that the ranks will have them: calls are run in their order."""
        self._names.warn_of_pulled(self.values)
        self._names.have(self.values)

    def ended(self, kept: Sequence[Kept]) -> None:
        """Note that the ranks have had the call, and what the children have since."""
        self._kept = kept
        names = dict.fromkeys(name for child in kept for name in child.bound)
        self._names.have_set(names, self.number)
        for child in kept:
            self.objects.dropped(child.dropped, self.number)
        if self.sets.in_caller:
            self.objects.optimizers.note_again()
            self.definitions.note_again()

    def made(self, names: Iterable[str]) -> None:
        """Note that the caller's rank has bound these, as the children have theirs."""
        for name, value in values_of(names):
            theirs = [child.signs.get(name) for child in self._kept]
            if any(sign is not None for sign in theirs):
                self.objects.made(self.first, name, value, theirs, self.number)

    def lost(self) -> None:
        """Note that the call never arrived."""
        self._names.never_came(self.values)
        self.definitions.forget()
