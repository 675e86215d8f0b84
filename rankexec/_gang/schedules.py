"""Learning rate schedulers bound for an optimizer that the ranks have: what they have set in it.

A scheduler writes into its optimizer when it is made: the first learning rate, and what it needs to
compute the next ones. Made in the notebook it has done so to the notebook's optimizer alone; with
another first learning rate the ranks would drift apart.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ("Amendment", "Optimizers", "amend")

Amendment: TypeAlias = "tuple[Any, list[dict[str, Any]]]"
"""An optimizer, and for each group of parameters what is to be set in it."""


class Optimizers:
    """The optimizers that have travelled, and their settings as the ranks have got them, or set."""

    def __init__(self) -> None:
        self._settings: weakref.WeakKeyDictionary[Any, list[dict[str, Any]]] = (
            weakref.WeakKeyDictionary()
        )

    def note(self, objects: Iterable[Any]) -> None:
        """Note those that are among objects that travel."""
        kind: Any = getattr(sys.modules.get("torch.optim"), "Optimizer", ())
        for obj in objects:
            if isinstance(obj, kind):
                self._settings[obj] = _settings(obj)

    def note_again(self) -> None:
        """Note that a call may have changed them, on all ranks and in the caller."""
        for optimizer in list(self._settings):
            self._settings[optimizer] = _settings(optimizer)

    def amendments(self, objects: Iterable[Any]) -> list[Amendment]:
        """Return what was set since in the optimizers of the schedulers among objects."""
        if not self._settings:
            return []
        kind: Any = sys.modules["torch.optim"].lr_scheduler.LRScheduler
        schedulers = [obj for obj in objects if isinstance(obj, kind)]
        found = {id(s.optimizer): s.optimizer for s in schedulers if hasattr(s, "optimizer")}
        return [
            (optimizer, changed)
            for optimizer in found.values()
            if any(changed := self._changed(optimizer))
        ]

    def _changed(self, optimizer: Any) -> list[dict[str, Any]]:
        before = self._settings.get(optimizer, [])
        now = self._settings[optimizer] = _settings(optimizer)
        return [
            {name: value for name, value in new.items() if not _same(old.get(name, _ABSENT), value)}
            for old, new in zip(before, now, strict=False)
        ]


_ABSENT = object()


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """Return a copy of what an optimizer's groups hold besides their parameters."""
    groups = optimizer.param_groups
    return [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in groups]


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # a tensor of several numbers, or anything at all
        return False


def amend(amendments: Iterable[Amendment]) -> None:
    """Set (in a rank) what schedulers have set in the caller."""
    for optimizer, changed in amendments:
        for group, values in zip(optimizer.param_groups, changed, strict=False):
            group.update(values)
