"""Let a torchvision that was built for CUDA be imported beside torch's build for the CPU.

Its own operators are missing then, and it stops at the first one that it describes. No test uses
them, but transformers and Lightning import torchvision where it is installed, and fastai needs it.
With this folder in PYTHONPATH every interpreter declares the two before it imports torchvision.
"""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import sys
from typing import Any

OPERATORS = ("nms(Tensor dets, Tensor scores, float limit) -> Tensor",)
OPERATORS = (*OPERATORS, OPERATORS[0].replace("nms", "qnms"))
declared: list[Any] = []
"""Operators last as long as the object by which they were declared."""


class Declare(importlib.abc.MetaPathFinder):
    """Finds nothing, but is asked first."""

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> None:
        """Declare the operators if torchvision is asked for and does not fit."""
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        versions = (torch.__version__, importlib.metadata.version(name))
        if [version.endswith("+cpu") for version in versions] == [True, False]:
            declared.append(torch.library.Library(name, "DEF"))
            for operator in OPERATORS:
                declared[0].define(operator)


sys.meta_path.insert(0, Declare())
