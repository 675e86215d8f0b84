"""The notebook as magics see it: where they are registered, what its cells are, how they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rankexec._future import RankedFuture
from rankexec._gang.outcomes import users_part
from rankexec._notebook.autoranked import AutoRanked
from rankexec._notebook.cell import Asked, Cell, CellResult, Source
from rankexec._notebook.options import completer, usage_error
from rankexec._notebook.syntax import has_await

__all__ = ("Loaded", "Page", "compiled", "results_of")


class Page:
    """A shell, with the magics of one extension.

    Args:
        shell: IPython's InteractiveShell.
        name: of the cell magic that runs cells on ranks.
        check: takes that magic's options, as words, and raises UsageError if they are wrong.
        marker: cells that begin with it are the notebook's; "": there is no such marker.

    Attributes:
        auto: which makes later cells begin with that magic.
    """

    def __init__(
        self, shell: Any, name: str, check: Callable[[list[str]], object], marker: str = ""
    ) -> None:
        self._shell = shell
        self._name = name
        self._undo = ExitStack()
        self.auto = AutoRanked(shell, name, check, marker)
        self._undo.callback(self.auto.close)

    def close(self) -> None:
        """Take the magics away; leave the shell as it was."""
        self._undo.close()

    def register(
        self, kind: str, name: str, parser: Any, run: Callable[..., Any], *words: str
    ) -> None:
        """Add a magic, with its help and its completion.

        Args:
            kind: "line" or "cell".
            name: without the percent signs.
            parser: of its arguments.
            run: what it does with them, and with the cell.
            *words: what the tabulator key offers beside the options.
        """

        def magic(line: str, *cell: str) -> Any:
            __tracebackhide__ = True  # IPython shows the user's frames only
            if {"-h", "--help"} & set(line.split()):
                sys.stdout.write(parser.format_help())
                return None
            return run(parser.parse_argstring(line), *cell)

        shell = self._shell
        magic.__name__ = name
        magic.__doc__ = parser.format_help()
        shell.register_magic_function(magic, kind, name)
        self._undo.callback(shell.magics_manager.magics[kind].pop, name, None)
        key = ("%" if kind == "line" else "%%") + name
        shell.set_hook("complete_command", completer(parser, *words), str_key=key)
        self._undo.callback(shell.strdispatchers["complete_command"].strs.pop, key, None)

    def source(self, cell: str) -> Source:
        """Return a cell as Python.

        Raises:
            UsageError: it awaits at its top level.
        """
        text = self.auto.plain(cell)
        if has_await(text):
            raise usage_error(
                f"%%{self._name}: a rank has no event loop to await at a cell's top level; say "
                f"asyncio.run(...), or run the cell without %%{self._name}"
            )
        shell = self._shell
        text = "\n" * self._lines_above(cell) + text
        history = shell.history_manager
        # Releases differ in when they count: before a cell is run, or after it.
        number = len(history.input_hist_raw) - 1 if history else shell.execution_count
        filename = shell.compile.cache(text, number)
        return Source(text, filename, f"Cell In[{number}]", shell.compile.flags)

    def _lines_above(self, cell: str) -> int:
        """Return how many lines of the cell on the page its text lacks, for tracebacks."""
        empty = 0 if not cell.strip() else cell[: -len(cell.lstrip())].count("\n")
        return empty + (0 if self.auto.has_made(cell) else 1)  # the one with the magic

    def cell(self, source: Source, asked: Asked) -> Cell:
        """Return a cell that runs in the notebook's namespace, or reads it."""
        __tracebackhide__ = True
        cell = compiled(source, asked, self._shell.user_ns)
        self._shell.compile.flags |= cell.flags  # `from __future__` is for later cells, too
        return cell


class Loaded:
    """Where an extension is loaded: in one shell of a process, as a rule.

    Args:
        make: makes of a shell what has a method `unload`.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._by_id: dict[int, Any] = {}

    def load(self, shell: Any) -> None:
        """Load it; afresh, if it was loaded."""
        self.unload(shell)
        self._by_id[id(shell)] = self._make(shell)

    def unload(self, shell: Any) -> None:
        """Unload it, if it was loaded."""
        if id(shell) in self._by_id:
            self._by_id.pop(id(shell)).unload()


def compiled(source: Source, asked: Asked, namespace: dict[str, Any]) -> Cell:
    """Return a cell of a namespace. A SyntaxError shows the cell, and none of our frames."""
    __tracebackhide__ = True
    try:
        return Cell(source, asked, namespace)
    except SyntaxError as error:
        raise error.with_traceback(None) from None


def results_of(future: RankedFuture[Any]) -> list[CellResult]:
    """Wait for a cell; return its results by rank, or raise what it has raised.

    Raises:
        KeyboardInterrupt: the stop button; the cell is broken off on all ranks.
        BaseException: the first failure, without frames of ours.
    """
    __tracebackhide__ = True
    try:
        error = future.exception()
    except BaseException:  # Ctrl-C, while all ranks are children
        future.cancel()
        raise
    if error is None:
        results: list[CellResult] = future.result()
        return results
    del future  # the traceback holds this frame
    raise error.with_traceback(users_part(error))  # of a child's there is none
