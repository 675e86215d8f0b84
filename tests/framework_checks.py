"""What the scripts in frameworks/ share: train in gangs and alone, and print what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from rankexec import LocalLauncher, RankedExecutor, TorchDDPCtx


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's scans as images of 1 x 8 x 8 pixels, and their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(found.target)


def make_model() -> nn.Module:
    """Return an untrained classifier for them."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def accuracy(model: nn.Module) -> float:
    """Return the share of all scans that a model gets right."""
    images, labels = digits()
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def weights(model: nn.Module) -> str:
    """Return a model's weights, exactly, as one short text."""
    return repr([parameter.double().sum().item() for parameter in model.parameters()])


def state() -> dict[str, Any]:
    """Return what of this process a gang has to leave as it was."""
    return {
        "environment": dict(os.environ),
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "cwd": os.getcwd(),
        "group": dist.is_initialized(),
        "prompt": getattr(sys, "ps1", None),
    }


def run(
    train: Callable[[], dict[str, Any]],
    *preload: str,
    sizes: tuple[int, ...] = (2, 2),
    **options: Any,
) -> None:
    """Run `train` in gangs of these sizes, then alone; print what each returned as JSON.

    Also "changed": what is not as it was before the gangs.
    """
    before = state()
    os.chdir(tempfile.mkdtemp(dir=os.getcwd()))
    launcher = LocalLauncher(preload=preload)
    options = {"ctx": TorchDDPCtx(use_gpu=False), "gather": True, "timeout": 100, **options}
    with RankedExecutor(2, launcher=launcher, **options) as executor:
        gangs = [executor.options(world_size=size).submit(train).result() for size in sizes]
    alone = train()
    os.chdir(before["cwd"])
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    print(json.dumps({"gangs": gangs, "alone": alone, "changed": changed}))
