"""Bare operations, to hold a launcher's time against."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import bodies
from peer import Peer

__all__ = ("Yardstick",)


class Yardstick(Peer):
    """What a contestant is in its place; it launches nothing."""

    def __init__(self, _mode: str) -> None:
        import numpy as np  # noqa: F401  # as a caller who has it
        import torch  # noqa: F401  # as a caller who has it

    def write(self, buffer: Any, times: int = 1) -> None:
        """Write a buffer into a fresh memfd."""
        for _ in range(times):
            rest = memoryview(buffer).cast("B")
            with open(os.memfd_create("yardstick"), "wb", buffering=0) as file:
                while rest.nbytes:
                    rest = rest[file.write(rest) :]

    def make_and_write(self, count: int, times: int) -> None:
        """Make an array and write it into a memfd, `times` times, one after another."""
        made = [bodies.make(count) for _ in range(times)]
        for array in made:
            self.write(array)

    def pickle(self, data: Any, loads: int) -> None:
        """Dump once, load `loads` times, one after another."""
        packed = pickle.dumps(data, protocol=5)
        for _ in range(loads):
            pickle.loads(packed)

    def import_module(self, name: str) -> float:
        """Return the seconds that importing a module takes in a fresh interpreter."""
        code = "import time; a = time.perf_counter(); import {}; print(time.perf_counter() - a)"
        command = [sys.executable, "-c", code.format(name)]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)
