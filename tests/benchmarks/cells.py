"""A notebook's cells, in an IPython shell of the contestant's own process."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ("GANGS", "Notebook")

GANGS = {
    "plain": None,
    "gang": "2",
    "gang, standby": "2 --standby",
    "gang, DDP": "2 --ddp",
    "session": "2 --session",
    "session, DDP": "2 --ddp --session",
}
"""By mode, what `%ranks` is told; None: cells as they are."""


class Notebook:
    """A shell, and what its cells run on."""

    def __init__(self, mode: str) -> None:
        import torch  # noqa: F401  # as a notebook that has a model
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False  # it would write into the user's own
        self._shell: Any = InteractiveShell.instance(config=config)
        self._ranks = GANGS[mode]
        self._variables = 0

    def open(self) -> None:
        """Set the notebook's gang."""
        if self._ranks is not None:
            self._run("%load_ext rankexec")
            self._run(f"%ranks {self._ranks} --timeout 60")

    def cell(self, variables: int) -> float:
        """Run a cell in a notebook with that many variables; return the seconds it took."""
        self._shell.user_ns.update(
            (f"variable{number}", [number]) for number in range(self._variables, variables)
        )
        self._variables = variables
        cell = f"x = {time.monotonic_ns()}"  # never the same text: nothing is kept of it
        if self._ranks is not None:
            cell = f"%%ranked\n{cell}"
        began = time.perf_counter()
        self._run(cell)
        return time.perf_counter() - began

    def _run(self, cell: str) -> None:
        self._shell.run_cell(cell).raise_error()

    def close(self) -> None:
        """End the gang."""
        if self._ranks is not None and "rankexec.magics" in sys.modules:
            self._run("%ranks --off")
