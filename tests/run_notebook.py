"""Run a notebook in a fresh Jupyter kernel, in an empty folder: `run_notebook.py FROM TO`.

TO gets the outputs; FROM and TO may be the same file, to keep them. A program of its own: a client
of a kernel keeps threads and sockets.
"""

from __future__ import annotations

import sys
import tempfile

import nbformat
from nbclient import NotebookClient

CELL_SECONDS = 240
"""How long one cell may take; a bound for a loaded machine."""


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop what another machine, or another run, would write differently."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "rankexec": notebook.metadata.get("rankexec", {}),
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})


def main(source: str, target: str) -> None:
    """Run all cells. Raises CellExecutionError for the first one that fails; TO is not written."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    tidy(notebook)
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
