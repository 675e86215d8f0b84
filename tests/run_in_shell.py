"""Run cells in an IPython shell of this process: a JSON list from stdin, another one to stdout.

A program of its own: a shell takes `__main__`, hooks and history of its process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


def run(shell: Any, cell: str) -> dict[str, Any]:
    """Run a cell; return what it printed, displayed and raised, and its value."""
    with capture_output() as captured:
        result = shell.run_cell(cell, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    return {
        "out": captured.stdout,
        "err": captured.stderr,
        "shown": [output.data for output in captured.outputs],
        "error": error and type(error).__name__,
        "text": error and str(error),
        "value": repr(result.result),
    }


def complete(shell: Any, text: str) -> list[str]:
    """Return what the tabulator key offers."""
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def main() -> None:
    """Run them one after another, and say what each came to; lists of one text are completed."""
    shell = InteractiveShell.instance()
    shell.ast_node_interactivity = "last_expr"
    found = [
        complete(shell, *cell) if isinstance(cell, list) else run(shell, cell)
        for cell in json.load(sys.stdin)
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
