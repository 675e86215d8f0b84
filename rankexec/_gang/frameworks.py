"""What training frameworks keep in a process: changed while it is a rank, then put back.

Trainers remember in classes and modules how their process stands to others. A rank is to find what
a fresh rank would, and the caller's process, which outlives its gang, what it had. A library that
is not imported is not asked, and none is imported here. An import in the middle of a call is too
late for what the rank finds in it, but is put right when the rank leaves.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

__all__ = ("Kept", "enter", "held", "leave")

Kept: TypeAlias = "dict[tuple[str, str], Any]"
"""Values by where they are kept: name of the owner, name of the attribute."""


class _Place(NamedTuple):
    """Where a framework keeps something."""

    key: tuple[str, str]
    owner: Any
    in_rank: Any
    """What a fresh rank would find."""
    alone: Any
    """What a process without ranks would find after the import."""

    def read(self) -> Any:
        value = getattr(self.owner, self.key[1])
        return dict(value) if isinstance(value, dict) else value

    def write(self, value: Any) -> None:
        here = getattr(self.owner, self.key[1])
        if isinstance(here, dict):  # in place: it is the __dict__ of objects that are about
            here.clear()
            here.update(value)
        else:
            setattr(self.owner, self.key[1], value)


class _Outside:
    """What this process had when it became a rank."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        """None: it is no rank."""
        self.prompt: Any = None
        self.own: Kept | None = None
        """What the rank had when it left the last time; None: nobody asks."""


_outside = _Outside()


def enter() -> None:
    """Let this process be a rank; its environment is a rank's already.

    Called again before `leave`, for a rank's next call, it only mends libraries imported since.
    """
    again = _outside.kept is not None
    own = _outside.own or {}
    if _outside.kept is None:
        _outside.prompt, _outside.kept = getattr(sys, "ps1", None), {}
    # Lightning takes a process with a prompt for one that it may not run ranks in, and looks for
    # it on import. IPython sets one for such libraries and never reads it.
    if hasattr(sys, "ps1"):
        del sys.ps1
    for place in _places():
        if place.key in _outside.kept:
            continue
        # First of all, as a Ctrl-C may come just after it.
        _outside.kept[place.key] = place.alone if again else place.read()
        if callable(place.in_rank):
            place.write(place.in_rank)
        elif not again:  # else it is what the rank itself has put there
            place.write(own.get(place.key, place.in_rank))


def leave() -> None:
    """Let this process be no rank any more, if it is one."""
    if (kept := _outside.kept) is None:
        return
    if _outside.prompt is not None:
        sys.ps1 = _outside.prompt
    for place in _places():
        if _outside.own is not None:
            _outside.own[place.key] = place.read()
        place.write(kept.get(place.key, place.alone))
    _outside.kept = _outside.prompt = None


@contextmanager
def held(own: Kept) -> Iterator[None]:
    """Let the rank that this process is meanwhile find `own`, and leave there what it had.

    For a rank of several calls, between which the process is none.
    """
    _outside.own = own
    try:
        yield
    finally:
        leave()
        _outside.own = None


def _places() -> Iterator[_Place]:
    """Yield where the libraries that are imported now keep things."""
    yield from _torch()
    yield from _accelerate()
    yield from _transformers()
    yield from _fastai()
    yield from _lightning()


def _found(module: str, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield what a module has under these names, if it is imported (and that not half)."""
    for name in names:
        value = getattr(sys.modules.get(module), name, None)
        if value is not None:
            yield name, value


def _torch() -> Iterator[_Place]:
    """Yield torch's debug level, read from the environment when it was imported.

    With another one on each rank they run different collectives, and wait for each other.
    """
    for _, levels in _found("torch.distributed", "DebugLevel"):
        wanted = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF").upper()
        level = getattr(levels, wanted, levels.OFF)
        yield _Place(("torch.distributed", "level"), _DebugLevel(), level, levels.OFF)


class _DebugLevel:
    @property
    def level(self) -> Any:
        return sys.modules["torch.distributed"].get_debug_level()

    @level.setter
    def level(self, level: Any) -> None:
        sys.modules["torch.distributed"].set_debug_level(level)


def _accelerate() -> Iterator[_Place]:
    """Yield the states that all Accelerators of a process share, transformers' Trainer's too.

    One that is left over makes ranks train alone or wait for a group that is gone.
    """
    for name, owner in _found("accelerate.state", *_STATES):
        yield _Place((name, "_shared_state"), owner, {}, {})


_STATES = ("PartialState", "AcceleratorState", "GradientState")


def _transformers() -> Iterator[_Place]:
    """Yield how a Trainer begins: with arguments that may have been made before the gang.

    They have asked then whether their process is alone, and remember the answer.
    """
    for name, owner in _found("transformers.trainer", "Trainer"):
        theirs = getattr(owner.__init__, "_theirs", owner.__init__)
        yield _Place((name, "__init__"), owner, _asking_again(theirs), theirs)


def _asking_again(theirs: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(theirs)
    def begin(self: Any, model: Any = None, args: Any = None, *rest: Any, **named: Any) -> None:
        state = getattr(args, "distributed_state", None)
        if state is not None and vars(state).get("num_processes") != int(os.environ["WORLD_SIZE"]):
            vars(args).pop("_setup_devices", None)
            _ = args.device  # asks
        theirs(self, model, args, *rest, **named)

    begin._theirs = theirs  # type: ignore[attr-defined]  # how `_transformers` finds it again
    return begin


def _fastai() -> Iterator[_Place]:
    """Yield how a distributed DataLoader of fastai's sends its order of items: with `.cuda()`."""
    for name, owner in _found("fastai.distributed", "DistributedDL"):
        theirs = owner._broadcast
        theirs = getattr(theirs, "_theirs", theirs)
        yield _Place((name, "_broadcast"), owner, _on_cpu(theirs), theirs)


def _on_cpu(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return `_broadcast` for ranks without a GPU; with one it is `theirs`."""

    def _broadcast(self: Any, items: Any, rank: int) -> Any:
        if os.environ.get("ACCELERATE_USE_CPU") != "true":
            return theirs(self, items, rank)
        torch = sys.modules["torch"]
        items = torch.as_tensor(items, dtype=torch.long)
        torch.distributed.broadcast(items, rank)
        return items.tolist()

    _broadcast._theirs = theirs  # type: ignore[attr-defined]  # how `_fastai` finds it again
    return _broadcast


def _lightning() -> Iterator[_Place]:
    """Yield Lightning's own rank, for messages, and what it takes for a prompt."""
    rank = int(os.environ.get("RANK", "0"))
    for name, owner in _found("lightning_utilities.core.rank_zero", "rank_zero_only"):
        if hasattr(owner, "rank"):
            yield _Place((name, "rank"), owner, rank, 0)
    for module in _INTERACTIVE:
        for name, _ in _found(module, "_IS_INTERACTIVE"):
            owner = sys.modules[module]
            yield _Place((module, name), owner, False, _outside.prompt is not None)


_INTERACTIVE = tuple(
    f"{package}.{module}"
    for packages, module in (
        (("lightning.fabric", "lightning_fabric"), "utilities.imports"),
        (("lightning.fabric", "lightning_fabric"), "connector"),
        (("lightning.pytorch", "pytorch_lightning"), "trainer.connectors.accelerator_connector"),
    )
    for package in packages
)
"""Modules with a copy of what Lightning has found; it comes in one package or in two."""
