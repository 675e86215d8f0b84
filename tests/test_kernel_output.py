"""An executor in a real kernel: what ranks print and show is in the cell that submitted.

`drive_kernel` fails a test if anything comes from a cell that has ended, or if a process is left.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from helpers import drive_kernel

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not importlib.util.find_spec("ipykernel"), reason="needs ipykernel"),
]
BEGIN = """
import os, sys
from helpers import wait_until
from rankexec import RankedExecutor
executor = RankedExecutor(3)
apart = executor.options(caller_rank=None)
rank = lambda: int(os.environ["RANK"])
"""
MANY = 200
# One write for each line: lines of other ranks come between two writes.
PRINTS = f"""
def work():
    for i in range({MANY}):
        print(f"line {{i}}\\n", end="")
        print(f"warning {{i}}\\n", end="", file=sys.stderr)
"""


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def drive(tmp_path):
    """Run cells in a fresh kernel that has two executors, and return what became of each."""

    def drive(*cells: str, late: str = "") -> list[dict[str, Any]]:
        found = drive_kernel(tmp_path, [BEGIN, *cells], late=late)[1:]
        assert [cell["error"] for cell in found] == [None] * len(cells)
        return found

    return drive


def of_rank(number: int, text: str) -> list[str]:
    """Return the lines of a rank, without its prefix; rank 0's have none."""
    lines = [line for line in text.splitlines() if line]
    if number == 0:
        return [line for line in lines if not line.startswith("[rank ")]
    prefix = f"[rank {number}] "
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


@pytest.mark.parametrize("name", ["executor", "apart"])
def test_every_line_is_in_its_cell(drive, name) -> None:
    """Of every rank, in its order, children's with the rank before it; the next cell has none."""
    _, cell, after = drive(PRINTS, f"{name}.submit(work).result()", "print('after')")
    for stream, word in (("out", "line"), ("err", "warning")):
        for number in range(3):
            assert of_rank(number, cell[stream]) == [f"{word} {i}" for i in range(MANY)]
    assert (after["out"], after["err"]) == ("after\n", "")


@pytest.mark.parametrize("name", ["executor", "apart"])
def test_capture(drive, name) -> None:
    """%%capture has what all ranks print, also those in C and programs that they start."""
    _, _, cell, caught = drive(
        PRINTS,
        "def both():\n    work()\n    if rank(): os.system('echo from a shell')",
        f"%%capture caught\n{name}.submit(both).result()",
        "sys.stdout.write(caught.stdout)\nsys.stderr.write(caught.stderr);",
    )
    assert (cell["out"], cell["err"], cell["shown"]) == ("", "", [])
    lines = [f"line {i}" for i in range(MANY)]
    assert of_rank(0, caught["out"]) == lines
    for number in (1, 2):
        # The shell writes at once, Python when its buffer is full: which comes first is theirs.
        assert sorted(of_rank(number, caught["out"])) == sorted([*lines, "from a shell"])
        assert of_rank(number, caught["err"]) == [f"warning {i}" for i in range(MANY)]


def test_a_gang_that_prints_when_its_cell_has_ended(drive) -> None:
    """Without a `caller_rank`: its line goes to the cell that submitted, not to a later one."""
    _, cell, after = drive(
        "def speak(path):\n"
        "    wait_until(lambda: os.path.exists(path))\n"
        "    if rank() == 1:\n        print('late')",
        "path = os.path.abspath('go')\nfuture = apart.submit(speak, path)",
        "open(path, 'w').close()\nfuture.result()\nprint('done')",
        late="[rank 1] late\n",
    )
    assert (cell["out"], after["out"]) == ("", "done\n")


@needs("tqdm", "ipywidgets")
def test_widget_of_tqdm(drive) -> None:
    """Rank 0's progress bar is in the cell, moves there and is full in the end."""
    cell, after = drive(
        "from tqdm.notebook import tqdm\n"
        "def work():\n"
        "    for _ in tqdm(range(20), mininterval=0, disable=rank() > 0):\n        pass\n"
        "executor.submit(work).result()",
        "1",
    )
    view = "application/vnd.jupyter.widget-view+json"
    (shown,) = [data for data in cell["shown"] if view in data]
    assert shown[view]["model_id"] in cell["widgets"]
    (states,) = [
        states
        for states in cell["widgets"].values()
        if states[0].get("_model_name") == "FloatProgressModel"
    ]
    values = [state["value"] for state in states if "value" in state]
    assert values == sorted(values)
    assert set(range(1, 21)) <= set(values)
    assert [state["bar_style"] for state in states if "bar_style" in state][-1] == "success"
    assert after["widgets"] == {}


@needs("fastprogress")
def test_bars_of_fastprogress(drive) -> None:
    """Rank 0's bars and its table, in HTML, are in the cell and change there."""
    cell, after = drive(
        "from fastprogress.fastprogress import master_bar, progress_bar\n"
        "def work():\n"
        "    if rank():\n        return\n"
        "    bar = master_bar(range(3))\n"
        "    bar.write(['epoch', 'loss'], table=True)\n"
        "    for epoch in bar:\n"
        "        for _ in progress_bar(range(5), parent=bar):\n            pass\n"
        "        bar.write([str(epoch), f'0.{epoch}5'], table=True)\n"
        "executor.submit(work).result()",
        "1",
    )
    pages = [
        data["text/html"] for data in [*cell["shown"], *cell["updated"]] if "text/html" in data
    ]
    assert any("<progress" in page for page in pages)
    for text in ("epoch", "0.05", "0.15", "0.25"):
        assert text in pages[-1]
    assert after["updated"] == []
