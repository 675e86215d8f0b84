"""A session's call on its way out: what the ranks have of it does not travel, but is theirs.

Most calls reach nothing of that, and this is seen when they are pickled. Those that do are pickled
once more, with references. A rank may have let go of an object meanwhile, in a call that runs
before this one; so each reference comes with a spare.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rankexec._gang.arrived import Spare
from rankexec._gang.call import Call
from rankexec._gang.identity import Number
from rankexec._gang.known import Reference
from rankexec._gang.names import Going
from rankexec._gang.picklers import CallPickler, References, with_references
from rankexec._gang.replay import second_attempt
from rankexec._gang.travelled import Memo
from rankexec._gang.wire import Dumped, Packed, dump

__all__ = ("pack_owned",)


def pack_owned(call: Call, going: Going) -> Packed:
    """Pack a session's call. Raises whatever pickling raises."""
    objects = going.objects
    objects.forget_unheld()
    dumped = _with_references(call, going)
    going.first = objects.note(dumped.pickler.memo.copy(), going.number)
    packed = dumped.packed(first=going.first)
    del dumped  # it holds what was made only to be pickled
    objects.forget_unheld()
    return packed


def _with_references(call: Call, going: Going) -> Dumped:
    try:
        dumped = _dump(call, going)
    except Exception:  # what cannot travel may be part of what need not
        if not (known := going.objects.all()):
            raise
    else:
        memo: Memo = dumped.pickler.memo.copy()
        if not (known := going.objects.among(memo)):
            return dumped
        # Names that are read only by what the ranks have would be left out with it.
        needed = {**going.values, **call.needed}
        amendments = going.objects.optimizers.amendments(obj for _, obj in memo.values())
        call = replace(call, needed=needed, amendments=amendments)
    bare: References = {key: (*reference, None, 0) for key, reference in known.items()}
    referred = _dump(call, going, bare).pickler.referred
    with going.without_names():
        references = _with_spares(known, referred, going)
    return _dump(call, going, references)


def _dump(value: Any, going: Going, references: References | None = None) -> Dumped:
    make = partial(with_references, CallPickler, going=going, references=references)
    again = partial(second_attempt, going, references=references)
    return dump(value, make, again=again)


class _Group(NamedTuple):
    """Objects, by id, that have something below them in common, and the numbers of all that."""

    objects: dict[int, Any]
    numbers: set[Number]


def _with_spares(known: dict[int, Reference], referred: dict[int, Any], going: Going) -> References:
    """Return what stands for the objects: which of the ranks' own, and which of a spare."""
    references: References = {}
    for group in _belonging_together(referred, going):
        spare = _spare(list(group.objects.values()), going)
        numbers = [known[key].number for key in group.objects]
        going.objects.refer([*numbers, *(group.numbers if spare else ())], going.number)
        for place, key in enumerate(group.objects):
            references[key] = (*known[key], spare, place)
    return references


def _belonging_together(objects: dict[int, Any], going: Going) -> list[_Group]:
    groups: list[_Group] = []
    for key, obj in objects.items():
        spare = _spare([obj], going)
        numbers = set() if spare is None else {number for _, number in spare.numbers}
        same = [group for group in groups if not numbers.isdisjoint(group.numbers)]
        together = _Group({key: obj}, set(numbers))
        for group in same:
            together.objects.update(group.objects)
            together.numbers.update(group.numbers)
        groups = [*(g for g in groups if numbers.isdisjoint(g.numbers)), together]
    return groups


def _spare(objects: list[Any], going: Going) -> Spare | None:
    """Return them by value; None if they cannot travel, as they are now."""
    try:
        dumped = _dump(objects, going)
    except Exception:  # the ranks have them, or the call fails there
        return None
    memo = dumped.pickler.memo.copy()
    buffers = tuple(map(pickle.PickleBuffer, dumped.kept))
    kinds = ", ".join(sorted({type(obj).__qualname__ for obj in objects}))
    return Spare(dumped.stream.getvalue(), buffers, tuple(going.objects.numbers(memo)), kinds)
