"""Ddip's magics in a real kernel: output, the stop button, restarts; nothing is left.

`run_python` fails a test that leaves a process behind, the kernel and its ranks included.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from helpers import drive_kernel
from test_magics_kernel import SOON, STUCK, stopped

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(
        not (importlib.util.find_spec("ipykernel") and importlib.util.find_spec("torch")),
        reason="needs ipykernel and torch",
    ),
]
BEGIN = (
    "%load_ext rankexec.ddip",
    "%makedip -g 0,1",
    """%%dip everywhere
import os, pathlib, time
rank = lambda: int(os.environ['RANK'])
def mark(): pathlib.Path(f'here{rank()}').touch()
""",
)


@pytest.fixture
def drive(tmp_path):
    """Run steps in a fresh kernel, after the cells that all begin with; see `drive_kernel`."""

    def drive(*steps: Any) -> list[dict[str, Any]]:
        return drive_kernel(tmp_path, [*BEGIN, *steps])[len(BEGIN) :]

    return drive


def test_output(drive) -> None:
    """Every line is in its cell, in order, prefixed; %%capture catches it; values come as HTML."""
    many = "for i in range(300): print(f'line {i}\\n', end='')"  # one write: others come between
    first, every, _, caught, rich, quiet = drive(
        f"%%dip\n{many}",
        f"%%dip -S all\n{many}",
        f"%%capture caught\nget_ipython().run_cell_magic('dip', '', {many!r})",
        "print(caught.stdout)",
        "%%dip -S all\nfrom IPython.display import HTML\nHTML(f'<i>{rank()}</i>')",
        "%%dip -q\nprint('text')",
    )
    expected = [f"line {i}" for i in range(300)]
    assert first["out"].splitlines() == expected
    assert caught["out"].split("\n")[:-2] == expected
    lines = every["out"].splitlines()
    assert [n for n in lines if not n.startswith("[rank")] == expected
    assert [n for n in lines if n.startswith("[rank")] == [f"[rank 1] {n}" for n in expected]
    html = [data.get("text/html") for data in rich["shown"]]
    assert html == ["<b>rank 0</b>", "<i>0</i>", "<b>rank 1</b>", "<i>1</i>"]
    assert quiet["out"] == "text\n"


def test_everywhere_and_autodip(drive) -> None:
    """The notebook's value is shown first; cells of the user run on ranks, silent ones do not."""
    both, _, cell, silent, after = drive(
        "%%dip everywhere\nos.environ.get('RANK', 'me')",
        "%autodip on",
        "x = rank()\nprint(f'on {x}')",
        ["silent = os.environ.get('RANK')", "silent"],
        "%time print('x' in globals(), silent)",
    )
    assert [data["text/plain"] for data in both["shown"]] == ["'me'", "'0'"]
    assert cell["out"] == "on 0\n"
    assert silent["error"] is None
    assert after["out"].startswith("False None\n")


COLLECTIVE = "import torch, torch.distributed as dist\nif rank(): time.sleep(60)\ndist.barrier()"


@pytest.mark.parametrize("where", [*STUCK, "collective"])
def test_interrupt(drive, tmp_path, where) -> None:
    """The stop button ends the cell on all ranks; they live on, with their variables."""
    stuck = {**STUCK, "collective": COLLECTIVE}[where]
    _, cell, after = drive(
        "%%dip\nx, pid = 5, os.getpid()",
        stopped(tmp_path, f"%%dip\nprint('begun')\nmark()\n{stuck}"),
        "%%dip\nimport torch.distributed as dist\ndist.barrier()\nx, pid == os.getpid()",
    )
    assert (cell["error"], after["error"]) == ("KeyboardInterrupt", None)
    assert cell["seconds"] < SOON
    assert "begun\n" in cell["out"]
    assert after["shown"] == [{"text/plain": "(5, True)"}]


def test_interrupt_of_a_start(drive, tmp_path) -> None:
    """No group is there afterwards, and one can be made."""
    slow = "import pathlib, time\npathlib.Path('here0').touch()\ntime.sleep(60)\n"
    (tmp_path / "fastai").mkdir()
    (tmp_path / "fastai" / "__init__.py").write_text(slow, encoding="utf-8")
    (tmp_path / "accelerate.py").touch()
    cell, none, _, made = drive(
        stopped(tmp_path, "%makedip -g 0,1 -a fastai", ranks=1),
        "%makedip",
        "%makedip -g 0,1",
        "%%dip\nimport os\nos.environ['WORLD_SIZE']",
    )
    assert cell["error"] == "KeyboardInterrupt"
    assert cell["seconds"] < SOON
    assert none["out"].startswith("there is no group")
    assert made["shown"] == [{"text/plain": "'2'"}]


def test_restart_and_kill(drive) -> None:
    """The ranks are others afterwards, or gone."""
    pids = "%%dip\nimport os\npid = os.getpid()"
    *_, gone = drive(
        pids, "%dipull pid\nbefore = pid", "%makedip -r",
        pids, "%dipull pid\nafter = pid", "%makedip -k",
        "import psutil\nbefore != after, psutil.pid_exists(before), psutil.pid_exists(after)",
    )  # fmt: skip
    assert gone["shown"] == [{"text/plain": "(True, False, False)"}]


@pytest.mark.parametrize("action", ["restart", "kill"])
@pytest.mark.parametrize("cell", ["mark()\ntime.sleep(60)", "mark()\nwhile True: pass"])
def test_a_kernel_that_ends(drive, tmp_path, action, cell) -> None:
    """While a cell runs: no process of the group is left."""
    files = [str(tmp_path / f"here{rank}") for rank in range(2)]
    drive([f"%%dip\n{cell}", action, *files])


def test_a_kernel_that_is_shut_down(drive) -> None:
    """With a group that nobody has ended."""
    assert drive("%%dip\nrank()")[0]["error"] is None
