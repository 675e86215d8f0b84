"""The magics in a real kernel: output in its cell, the stop button, restarts; nothing is left.

`drive_kernel` fails a test that leaves a process behind, the kernel and its ranks included.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import drive_kernel, result_by_torchrun

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not importlib.util.find_spec("ipykernel"), reason="needs ipykernel"),
]
BEGIN = (
    "import os, pathlib, time\nrank = lambda: int(os.environ['RANK'])",
    "def mark(): pathlib.Path(f'here{rank()}').touch()",
    "%load_ext rankexec",
)
SOON = 5.0
"""Seconds: a bound for a loaded machine; the cells that are stopped would take a minute."""


@pytest.fixture
def drive(tmp_path):
    """Run steps in a fresh kernel, after the cells that all begin with; see `drive_kernel`."""

    def drive(*steps: Any) -> list[dict[str, Any]]:
        return drive_kernel(tmp_path, [*BEGIN, *steps])[len(BEGIN) :]

    return drive


def stopped(tmp_path: Path, cell: str, ranks: int = 2) -> list[str]:
    """Return a step: stop a cell when so many ranks have called `mark()` in it."""
    return [cell, "interrupt", *(str(tmp_path / f"here{rank}") for rank in range(ranks))]


def test_output(drive) -> None:
    """Every rank's lines are in their cell, in order, prefixed; %%capture catches them."""
    many = "for i in range(300): print(f'line {i}\\n', end='')"  # one write: others come between
    _, first, nothing, _, caught, c_code, rich = drive(
        "%ranks 2",
        f"%%ranked\n{many}",
        "1",
        f"%%capture caught\nget_ipython().run_cell_magic('ranked', '', {many!r})",
        "print(caught.stdout)",
        "%%ranked\nos.system('echo from a shell')",
        "%%ranked --see all\nfrom IPython.display import HTML\nHTML(f'<i>{rank()}</i>')",
    )
    expected = [f"line {i}" for i in range(300)]
    for text in (first["out"], caught["out"]):
        lines = [line for line in text.splitlines() if line]
        assert [n for n in lines if not n.startswith("[rank")] == expected
        assert [n for n in lines if n.startswith("[rank")] == [f"[rank 1] {n}" for n in expected]
    assert (nothing["out"], nothing["shown"]) == ("", [{"text/plain": "1"}])
    assert "[rank 1] from a shell\n" in c_code["out"]
    html = [data.get("text/html") for data in rich["shown"]]
    assert sorted(html) == ["<b>rank 1</b>", "<i>0</i>", "<i>1</i>"]


def test_autoranked(drive) -> None:
    """Cells of the user run on ranks; what the page runs silently, and what awaits, do not."""
    _, _, cell, silent, awaiting, after = drive(
        "%ranks 2",
        "%autoranked on",
        "x = rank()\nprint(f'on {x}\\n', end='')",
        ["silent = os.environ.get('RANK')", "silent"],
        "import asyncio\nawait asyncio.sleep(0)\nprint(os.environ.get('RANK'))",
        "%time print(x, silent, os.environ.get('RANK'))",
    )
    assert sorted(cell["out"].splitlines()) == ["[rank 1] on 1", "on 0"]
    assert silent["error"] is None
    assert awaiting["out"] == "None\n"
    assert after["out"].startswith("0 None None\n")


STUCK = {
    "python": "while True: pass",
    "sleep": "time.sleep(60)",
    "another rank": "if rank(): time.sleep(60)",
}


@pytest.mark.parametrize("where", STUCK)
def test_interrupt(drive, tmp_path, where) -> None:
    """The stop button ends the cell; its ranks are gone, and the next cell works."""
    _, cell, after = drive(
        "%ranks 2",
        stopped(tmp_path, f"%%ranked\nprint('begun')\nmark()\n{STUCK[where]}"),
        "%%ranked --gather pids\nos.getpid()",
    )
    assert (cell["error"], after["error"]) == ("KeyboardInterrupt", None)
    assert cell["seconds"] < SOON
    assert "begun\n" in cell["out"]


def test_interrupt_of_children(drive, tmp_path) -> None:
    """The same while the notebook only waits for ranks that are all children."""
    _, cell, after = drive(
        "%ranks 2",
        stopped(tmp_path, "%%ranked --remote\nmark()\ntime.sleep(60)"),
        "%%ranked --remote\nrank()",
    )
    assert cell["error"] == "KeyboardInterrupt"
    assert cell["seconds"] < SOON
    assert after["shown"] == [{"text/plain": "0"}]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_interrupt_in_a_collective(drive, tmp_path) -> None:
    """The same while the notebook's rank waits in gloo for a rank that does not come."""
    _, _, cell, after = drive(
        "%ranks 2 --ddp",
        "import torch, torch.distributed as dist\nt = torch.ones(1)",
        stopped(
            tmp_path,
            "%%ranked\nmark()\nif rank(): time.sleep(60)\ndist.all_reduce(t)",
        ),
        "%%ranked\nt.fill_(1)\ndist.all_reduce(t)\nt.item()",
    )
    assert cell["error"] == "KeyboardInterrupt"
    assert cell["seconds"] < SOON
    assert after["shown"] == [{"text/plain": "2.0"}]


@pytest.mark.parametrize("options", ["", " --standby"])
@pytest.mark.parametrize("action", ["restart", "kill"])
def test_a_kernel_that_ends(drive, tmp_path, action, options) -> None:
    """While a cell runs, and with parked ranks: no process of it is left."""
    files = [str(tmp_path / f"here{rank}") for rank in range(2)]
    drive(
        f"%ranks 2{options}",
        "%%ranked\n1",
        ["%%ranked\nmark()\ntime.sleep(60)", action, *files],
    )


def test_a_kernel_that_is_shut_down(drive) -> None:
    """With a gang that nobody has ended."""
    assert drive("%ranks 2 --standby", "%%ranked\nrank()")[1]["error"] is None


@pytest.mark.parametrize("caller_rank", ["0", "none"])
def test_training_in_cells_is_that_of_torchrun(drive, tmp_path, caller_rank) -> None:
    """Number for number, with optimizers and a scheduler that cells of the notebook bind."""
    pytest.importorskip("torch")
    program = Path(__file__).parent / "train_in_steps.py"
    text = program.read_text(encoding="utf-8")
    definitions = text.partition("from torch.nn.parallel")[2].partition("\nSTEPS = ")[0]
    steps = re.findall(r"\((\w+), (True|False)\)", text.partition("\nSTEPS = ")[2])
    assert len(steps) == 9
    cells = [
        "import copy, torch, torch.distributed as dist",
        "import rankexec; context = rankexec.TorchDDPCtx(use_gpu=False)",
        f"from torch.nn.parallel{definitions}",
        f"%ranks 2 --session --ddp --caller-rank {caller_rank}",
        *(
            f"%%ranked\n{name}();" if on_ranks == "True" else f"{name}()"
            for name, on_ranks in steps
        ),
        "%%ranked --gather found\nimport json\nfound = json.dumps(result())\nfound;",
        "print(repr(found))",
    ]
    found = drive(*cells)
    assert [cell["error"] for cell in found if cell.get("error")] == []
    ours = [json.loads(text) for text in ast.literal_eval(found[-1]["out"])]
    assert ours == result_by_torchrun(tmp_path, str(program))
