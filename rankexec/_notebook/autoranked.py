"""`%autoranked`, `%autodip`: later cells run as if they began with %%ranked, or %%dip."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rankexec._notebook import options
from rankexec._notebook.syntax import has_await, ipython_calls

__all__ = ("AutoRanked",)


class AutoRanked:
    """Puts a cell magic before the user's cells while it is on.

    IPython transforms more than these: what a magic runs within a cell, what a page runs silently
    to look at variables. So it follows when a cell begins and ends.

    Args:
        shell: IPython's InteractiveShell.
        name: of the cell magic.
        check: takes the magic's options, as words, and raises UsageError if they are wrong.
        marker: cells that begin with it are left alone.
    """

    def __init__(
        self, shell: Any, name: str, check: Callable[[list[str]], object], marker: str = ""
    ) -> None:
        self._shell = shell
        self._name = name
        self._check = check
        self._marker = marker
        self._options: str | None = None
        self._made = ""
        self._inside = 1  # the cell that loads the extension is being run
        self._undo = ExitStack()
        for event, handler in (("pre_execute", self._enter), ("post_execute", self._leave)):
            shell.events.register(event, handler)
            self._undo.callback(shell.events.unregister, event, handler)
        shell.input_transformers_cleanup.append(self._transform)
        self._undo.callback(shell.input_transformers_cleanup.remove, self._transform)

    def close(self) -> None:
        """Leave cells alone from here on."""
        self._undo.close()

    def set(self, state: str | None, words: list[str]) -> None:
        """Turn it on, with options of the magic, or off, or neither; print what is set now."""
        if state == "on":
            self._check(words)
            self._options = " ".join(words)
        elif words:
            raise options.usage_error(f"%auto{self._name} takes options of %%{self._name} after on")
        elif state == "off":
            self._options = None
        sys.stdout.write(f"auto{self._name} is {self.state()}\n")

    def state(self) -> str:
        """Return what is set."""
        on = self._options is not None
        return f"on: %%{self._name} {self._options}".rstrip() if on else "off"

    def plain(self, cell: str) -> str:
        """Return a cell as Python: magics and shell commands have become calls."""
        self._inside += 1
        try:
            text: str = self._shell.transform_cell(cell)
        finally:
            self._inside -= 1
        return text

    def has_made(self, cell: str) -> bool:
        """Return whether the user did not say the magic before this cell."""
        return cell == self._made

    def _enter(self) -> None:
        self._inside += 1

    def _leave(self) -> None:
        self._inside = max(0, self._inside - 1)  # empty cells leave and have not entered

    def _transform(self, lines: list[str]) -> list[str]:
        self._made = self._made if self._inside else ""
        if self._options is None or self._inside or self._is_silent():
            return lines
        cell = "".join(lines)
        if self._marker and cell.startswith(self._marker):
            return lines
        try:
            text = self.plain(cell)
            if has_await(text):
                return lines
            tree = ast.parse(text)
        except SyntaxError:  # IPython will say so
            return lines
        if not tree.body or ipython_calls(tree.body[0]):
            return lines
        self._made = cell
        return [f"%%{self._name} {self._options}\n", *lines]

    # To find out whether a cell is complete, IPython leaves such transformers out.
    _transform.has_side_effects = True  # type: ignore[attr-defined]  # functions take any

    def _is_silent(self) -> bool:
        get_parent = getattr(self._shell, "get_parent", None)  # a kernel's shell has it
        content = (get_parent() if get_parent else {}).get("content", {})
        return bool(content.get("silent"))
