"""`%autoranked`: later cells run as if they began with %%ranked."""

from __future__ import annotations

import ast
import sys
from contextlib import ExitStack
from typing import Any

from rankexec._notebook import options
from rankexec._notebook.syntax import has_await, ipython_calls

__all__ = ("AutoRanked",)


class AutoRanked:
    """Puts %%ranked before the user's cells while it is on.

    IPython transforms more than these: what a magic runs within a cell, what a page runs silently
    to look at variables. So it follows when a cell begins and ends.

    Args:
        shell: IPython's InteractiveShell.
        parser: of %%ranked.
    """

    def __init__(self, shell: Any, parser: Any) -> None:
        self._shell = shell
        self._parser = parser
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

    def set(self, given: Any) -> None:
        """Turn it on or off, or say what is set: the magic's arguments, parsed."""
        if given.state == "on":
            options.parse_where(self._parser.parse_args(given.options))
            self._options = " ".join(given.options)
        elif given.options:
            raise options.usage_error("%autoranked takes options of %%ranked after on")
        elif given.state == "off":
            self._options = None
        else:
            on = self._options is not None
            state = f"on: %%ranked {self._options}".rstrip() if on else "off"
            sys.stdout.write(f"autoranked is {state}\n")

    def plain(self, cell: str) -> str:
        """Return a cell as Python: magics and shell commands have become calls."""
        self._inside += 1
        try:
            text: str = self._shell.transform_cell(cell)
        finally:
            self._inside -= 1
        return text

    def has_made(self, cell: str) -> bool:
        """Return whether the user did not say %%ranked before this cell."""
        return cell == self._made

    def _enter(self) -> None:
        self._inside += 1

    def _leave(self) -> None:
        self._inside = max(0, self._inside - 1)  # empty cells leave and have not entered

    def _transform(self, lines: list[str]) -> list[str]:
        self._made = self._made if self._inside else ""
        if self._options is None or self._inside or self._is_silent():
            return lines
        try:
            text = self.plain("".join(lines))
            if has_await(text):
                return lines
            tree = ast.parse(text)
        except SyntaxError:  # IPython will say so
            return lines
        if not tree.body or ipython_calls(tree.body[0]):
            return lines
        self._made = "".join(lines)
        return [f"%%ranked {self._options}\n", *lines]

    # To find out whether a cell is complete, IPython leaves such transformers out.
    _transform.has_side_effects = True  # type: ignore[attr-defined]  # functions take any

    def _is_silent(self) -> bool:
        get_parent = getattr(self._shell, "get_parent", None)  # a kernel's shell has it
        content = (get_parent() if get_parent else {}).get("content", {})
        return bool(content.get("silent"))
