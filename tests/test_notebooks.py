"""The notebooks of examples/: each runs in a fresh kernel, and shows what it is kept with.

A notebook's metadata say what has to be installed for it: `"rankexec": {"needs": ["fastai"]}`. What
a cell with the tag "varies" shows is not compared, and neither are stderr, HTML and pictures. To
keep the outputs of a notebook that was changed: `python run_notebook.py NOTEBOOK NOTEBOOK`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import run_python
from test_docs import by_rank

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parent / "examples").glob("*.ipynb"))

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem),
]


def read(path: Path) -> dict[str, Any]:
    """Return a notebook as its file has it."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return its cells that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(lines: str | list[str]) -> str:
    """Return a text of a notebook's file: one string, or its lines."""
    return "".join(lines)


def shown(cell: dict[str, Any]) -> str:
    """Return what a cell printed and displayed as text."""
    text = ""
    for output in cell["outputs"]:
        if output.get("name") == "stdout":
            text += text_of(output["text"])
        elif "data" in output:
            text += f"\n{text_of(output['data'].get('text/plain', ''))}\n"
    return text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs(path, tmp_path):
    """All cells of a notebook run, and nothing is left of the ranks, nor of the kernel."""
    kept = read(path)
    for name in ["nbclient", *kept["metadata"]["rankexec"]["needs"]]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    ran = tmp_path / "ran.ipynb"
    program = [str(HERE / "run_notebook.py"), str(path), str(ran)]
    done = run_python(program, tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    for now, before in zip(code_cells(read(ran)), code_cells(kept), strict=True):
        if "varies" not in before["metadata"].get("tags", []):
            assert by_rank(shown(now)) == by_rank(shown(before)), text_of(before["source"])


def test_it_is_kept_as_it_ran(path):
    """A notebook is kept with the outputs of one run from top to bottom, and no errors in them."""
    notebook = read(path)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "rankexec"}
    assert isinstance(notebook["metadata"]["rankexec"]["needs"], list)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs, "it shows nothing: keep its outputs"
    assert "error" not in {output["output_type"] for output in outputs}
    assert "site-packages" not in json.dumps(outputs), "a warning, with a path of one machine"
