"""What Ddip's groups run: a cell on one rank, in a group that may be prepared for an application.

All of this happens in a rank. An application is a context around the group: after a call that
failed the group is left and joined anew, and its preparation with it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rankexec._torch import gpu_memory_returned
from rankexec.contexts import TorchDDPCtx

__all__ = ("APPS", "COMMANDS", "FastaiDDPCtx", "context_for", "run_cell")

APPS = {"none": ("torch",), "fastai": ("torch", "fastai", "accelerate")}
"""What has to be installed, by app."""


def context_for(app: str) -> TorchDDPCtx:
    """Return the context of a group for this app."""
    return FastaiDDPCtx() if app == "fastai" else TorchDDPCtx()


def run_cell(cell: Callable[[], Any], command: str | None) -> Any:
    """Run a command of the app, if there is one, and a cell; give free GPU memory back."""
    with gpu_memory_returned():
        if command is not None:
            COMMANDS[command]()
        return cell()


class FastaiDDPCtx(TorchDDPCtx):
    """A group in which fastai's Learners are made distributed, and rank 0 alone shows progress."""

    def __repr__(self) -> str:
        return "FastaiDDPCtx()"

    def __enter__(self) -> FastaiDDPCtx:  # noqa: PYI034  # Self is new in Python 3.11
        importlib.import_module("fastai.distributed")  # it chooses a GPU; then the group does

        super().__enter__()
        self._leaving.callback(finalizer)
        try:
            initializer()
        except BaseException:
            self._leaving.close()
            raise
        return self


_prepared = ExitStack()
"""What this process, a rank, has to undo."""


def initializer() -> None:
    """Make Learners distributed from now on, and silence all ranks but the first."""
    from fastai.torch_core import rank_distrib

    finalizer()
    _prepared.enter_context(_distributed_learners())
    if rank_distrib():
        silent_console()


def finalizer() -> None:
    """Leave fastai as it was."""
    _prepared.close()


def silent_console() -> None:
    """Show no progress bars on any rank."""
    _prepared.enter_context(_no_bars())


COMMANDS: dict[str, Callable[[], None]] = {
    "initializer": initializer,
    "finalizer": finalizer,
    "silent_console": silent_console,
}
"""What %%dip -a takes in a group that is prepared for fastai."""


@contextmanager
def _distributed_learners() -> Iterator[None]:
    from fastai.learner import Learner
    from torch import distributed

    init, to_distributed = Learner.__init__, Learner.to_distributed
    sync_bn = distributed.get_backend() == "nccl"  # torch has it for GPUs only

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807  # it becomes that
        init(self, *args, **kwargs)
        self.to_distributed(sync_bn=sync_bn)

    @functools.wraps(to_distributed)
    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        # By `learn.distrib_ctx()`, too: a model that is wrapped twice cannot be trained.
        if hasattr(self, "distributed_trainer"):
            return self
        return to_distributed(self, *args, **kwargs)

    Learner.__init__, Learner.to_distributed = __init__, once
    try:
        yield
    finally:
        Learner.__init__, Learner.to_distributed = init, to_distributed


@contextmanager
def _no_bars() -> Iterator[None]:
    from fastprogress import fastprogress

    before, fastprogress.NO_BAR = fastprogress.NO_BAR, True
    try:
        yield
    finally:
        fastprogress.NO_BAR = before
