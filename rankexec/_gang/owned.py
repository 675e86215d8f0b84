"""A session's call on its way out: what the ranks have of it does not travel, but is theirs.

Most calls reach nothing of that, and this is seen when they are pickled. Those that do are pickled
once more, with references. A rank may have let go of an object meanwhile, in a call that runs
before this one; so each reference comes with a spare.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from typing import Any

from rankexec._gang.arrived import Spare
from rankexec._gang.call import Call
from rankexec._gang.deferred import Deferred
from rankexec._gang.identity import Number
from rankexec._gang.names import Going
from rankexec._gang.output import warn
from rankexec._gang.picklers import CallPickler, Refer, with_references
from rankexec._gang.replay import second_attempt
from rankexec._gang.wire import Dumped, Packed, dump
from rankexec._gang.within import find_within, held_elsewhere

__all__ = ("pack_owned",)


def pack_owned(call: Call, going: Going) -> Packed:
    """Pack a session's call. Raises whatever pickling raises."""
    objects = going.objects
    dumped = _plainly(call, going) or _with_references(call, going)
    going.first = objects.note(dumped.memo, going.number)
    going.definitions.note(dumped.pickler.definitions)
    packed = dumped.packed(first=going.first)
    del dumped  # it holds what was made only to be pickled
    objects.forget_unheld()
    return packed


def _plainly(call: Call, going: Going) -> Dumped | None:
    """Return the call by value; None if it reaches what the ranks have."""
    objects = going.objects
    if any(map(objects.has, (*call.args, *call.kwargs.values()))):
        return None
    try:
        dumped = _dump(call, going)
    except (Exception, SystemExit):  # what cannot travel may be part of what need not
        if not objects:
            raise
        return None
    return None if _find_within(call, dumped, going) or objects.reached(dumped.memo) else dumped


def _with_references(call: Call, going: Going) -> Dumped:
    """Return the call with references; pickled again until they and the names are complete."""
    amendments: dict[int, Any] = {}
    references = _References(going)
    while True:
        # Names that are read only by what the ranks have would be left out with it.
        needed = {**going.values, **call.needed}
        complete = replace(call, needed=needed, amendments=[*amendments.values()])
        dumped = _dump(complete, going, references)
        met = (obj for _, obj in dumped.memo.values())
        found = going.objects.optimizers.amendments(met)
        amendments.update((id(optimizer), (optimizer, changed)) for optimizer, changed in found)
        more = found or _find_within(call, dumped, going) or references.have_merged()
        if not (more or going.values.keys() - needed.keys()):
            return dumped


def _find_within(call: Call, dumped: Dumped, going: Going) -> bool:
    """Note what of a call the ranks have made within what they have; return whether there is any.

    Without a caller's rank only they know.
    """
    objects = going.objects
    if not (objects and going.sets.in_caller):
        return False
    held = held_elsewhere(dumped.memo)
    held.pop(id(call.kwargs), None)  # which `submit` holds
    new = {key: obj for key, obj in held.items() if not objects.has(obj)}
    if not new:
        return False
    found = find_within(objects.all(), new, objects.number_of)
    for key, way in found.items():
        if way is not None:
            going.ways[objects.note_within(new[key], going.number)] = way
        elif key not in going.nowhere:
            going.nowhere.add(key)
            warn(
                f"the ranks have made a {type(new[key]).__qualname__} within what they have, and "
                f"where cannot be said: they get a copy of the caller's"
            )
    return any(found.values())


def _dump(value: Any, going: Going, refer: Refer | None = None) -> Dumped:
    make = partial(with_references, CallPickler, going=going, refer=refer)
    return dump(value, make, again=partial(second_attempt, going, refer=refer))


class _References:
    """What stands for the objects that a call reaches: which of the ranks', or which of a spare.

    Objects that have something below them in common have one spare.
    """

    def __init__(self, going: Going) -> None:
        self._going = going
        self._by_id: dict[int, tuple[Any, ...]] = {}
        self._groups: list[tuple[dict[int, Any], set[Number]]] = []
        self._merged = False

    def __call__(self, obj: Any) -> tuple[Any, ...] | None:
        """Return what stands for an object; None if the ranks do not have it."""
        if id(obj) not in self._by_id:
            if (number := self._going.objects.reference(obj)) is None:
                return None
            with Deferred():  # the table of what the ranks have must be right
                self._add(obj, number)
        return self._by_id[id(obj)]

    def have_merged(self) -> bool:
        """Return whether some have another spare than they had at first; once."""
        merged, self._merged = self._merged, False
        return merged

    def _add(self, obj: Any, number: Number) -> None:
        spare, numbers = self._spare([obj])
        same = [group for group in self._groups if not numbers.isdisjoint(group[1])]
        self._groups = [group for group in self._groups if numbers.isdisjoint(group[1])]
        objects = {key: other for group, _ in same for key, other in group.items()}
        self._groups.append(({**objects, id(obj): obj}, numbers.union(*(n for _, n in same))))
        way = self._going.ways.get(number)
        self._by_id[id(obj)] = (number, spare, 0, way)
        self._going.objects.refer([number, *numbers], self._going.number)
        if objects:
            self._merged = True
            spare, _ = self._spare([*objects.values(), obj])
            for place, key in enumerate((*objects, id(obj))):
                number, _, _, way = self._by_id[key]
                self._by_id[key] = (number, spare, place, way)

    def _spare(self, objects: list[Any]) -> tuple[Spare | None, set[Number]]:
        """Return them by value, and the numbers of all that; None if they cannot travel now."""
        try:
            with self._going.without_names():
                dumped = _dump(objects, self._going)
        except (Exception, SystemExit):  # the ranks have them, or the call fails there
            return None, set()
        buffers = tuple(map(pickle.PickleBuffer, dumped.kept))
        kinds = ", ".join(sorted({type(obj).__qualname__ for obj in objects}))
        numbers = self._going.objects.numbers(dumped.memo)
        spare = Spare(dumped.stream.getvalue(), buffers, pickle.dumps(numbers), kinds)
        return spare, set(numbers.values())
