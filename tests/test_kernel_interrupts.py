"""An executor in a real kernel: the stop button, restarts, a killed kernel, two notebooks.

`drive_kernel` fails a test that leaves a process behind, the kernel and its ranks included.
"""

from __future__ import annotations

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import drive_kernel, whole_lines

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not importlib.util.find_spec("ipykernel"), reason="needs ipykernel"),
]
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
SOON = 10.0
"""Seconds: a bound for a loaded machine, for what takes less than one. What is stopped would take
ten minutes."""
BEGIN = """
import os, pathlib, time
from helpers import own_processes, wait_until
from rankexec import LocalLauncher, RankedExecutor, TorchDDPCtx
executor = RankedExecutor(2)
rank = lambda: int(os.environ["RANK"])

def mark(what):
    pathlib.Path(f"{what}{rank()}").touch()

def then_hang(what):
    mark(what)
    time.sleep(600)
"""
WITH_TORCH = """
import torch
import torch.distributed as dist

def add_up():
    ones = torch.ones(1)
    dist.all_reduce(ones)
    return ones.item()

def wait_in_a_collective():
    mark("collective")
    if rank():
        time.sleep(600)
    add_up()

class NeverJoins(TorchDDPCtx):
    def __enter__(self):
        mark("rendezvous")
        if rank():
            time.sleep(600)
        return super().__enter__()
"""
LOOP = "def loop():\n    mark('loop')\n    while True: pass"
HANGS = """
class Hangs:
    '''Hangs when a child unpacks it.'''
    def __reduce__(self):
        return then_hang, ("start",)
"""
NOTHING_LEFT = "wait_until(lambda: not own_processes())"


def stopped(folder: Path, name: str, cell: str, ranks: tuple[int, ...] = (0, 1)) -> list[str]:
    """Return a step: press stop in a cell when these ranks have left this mark."""
    return [cell, "interrupt", *(str(folder / f"{name}{rank}") for rank in ranks)]


def check_stops(folder: Path, before: list[str], stops: dict[str, list[str]], after: str) -> None:
    """Run cells of one kernel; each stop ends its cell, leaves no rank, and lets the next work."""
    steps: list[Any] = [BEGIN, *before]
    for step in stops.values():
        steps += [step, NOTHING_LEFT, after]
    found = drive_kernel(folder, steps)
    assert [cell["error"] for cell in found[: len(before) + 1]] == [None] * (len(before) + 1)
    rest = iter(found[len(before) + 1 :])
    for name, cell, nothing_left, next_cell in zip(stops, rest, rest, rest, strict=True):
        assert (name, cell["error"]) == (name, "KeyboardInterrupt")
        assert cell["seconds"] < SOON, name
        assert (name, nothing_left["error"]) == (name, None)
        assert (name, next_cell["error"]) == (name, None)


def test_what_a_stop_shows(tmp_path) -> None:
    """Where the user's function was, and little of what is between that and the cell."""
    cell = stopped(tmp_path, "sleep", "executor.submit(then_hang, 'sleep').result()")
    shown = drive_kernel(tmp_path, [BEGIN, cell])[1]["traceback"]
    assert re.search(r"-> \d+     time\.sleep\(600\)", shown)
    assert "in then_hang(what)" in shown
    assert "_conduct" not in shown
    assert "perform(" not in shown, shown


def test_stop(tmp_path) -> None:
    """In Python code, in a sleep, while ranks start, and while the cell waits for children."""
    stops = {
        "loop": stopped(tmp_path, "loop", "executor.submit(loop).result()"),
        "sleep": stopped(tmp_path, "sleep", "executor.submit(then_hang, 'sleep').result()"),
        "start": stopped(tmp_path, "start", "executor.submit(print, Hangs()).result()", (1,)),
        "children": stopped(
            tmp_path,
            "children",
            "with RankedExecutor(2, caller_rank=None) as apart:\n"
            "    apart.submit(then_hang, 'children').result()",
        ),
    }
    check_stops(tmp_path, [LOOP, HANGS], stops, "assert executor.submit(rank).result() == 0")


@needs_torch
def test_stop_in_torch(tmp_path) -> None:
    """In a collective and in a rendezvous, where the notebook's rank waits in C++ for another."""
    stops = {
        "collective": stopped(
            tmp_path, "collective", "grouped.submit(wait_in_a_collective).result()"
        ),
        "rendezvous": stopped(
            tmp_path, "rendezvous", "executor.options(ctx=NeverJoins()).submit(int).result()"
        ),
    }
    before = [WITH_TORCH, "grouped = executor.options(ctx=TorchDDPCtx())"]
    check_stops(tmp_path, before, stops, "assert grouped.submit(add_up).result() == 2")


@pytest.mark.parametrize("what", ["executor", "with"])
def test_stop_while_modules_are_preloaded(tmp_path, what) -> None:
    """The first gang waits for imports of the guardian; the cell does not, once it is stopped."""
    # Where ranks are interpreters of their own nothing is preloaded.
    (tmp_path / "slow_to_import.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path('importing').touch()\n"
        "limit = time.monotonic() + 100\n"
        "while not os.path.exists('imported') and time.monotonic() < limit: time.sleep(0.01)\n"
    )
    cells = {
        "executor": "slow = RankedExecutor(2, launcher=launcher)\nslow.submit(rank).result()",
        "with": "with RankedExecutor(2, launcher=launcher) as slow:\n    slow.submit(rank)",
    }
    after = {
        "executor": "assert slow.submit(rank).result() == 0",
        "with": "assert executor.submit(rank).result() == 0",
    }
    _, _, cell, next_cell, nothing_left = drive_kernel(
        tmp_path,
        [
            BEGIN,
            "launcher = LocalLauncher('forkserver', preload=['slow_to_import'])",
            [cells[what], "interrupt", str(tmp_path / "importing")],
            f"pathlib.Path('imported').touch()\n{after[what]}",
            NOTHING_LEFT,
        ],
    )
    assert (cell["error"], next_cell["error"]) == ("KeyboardInterrupt", None)
    assert cell["seconds"] < SOON
    assert nothing_left["error"] is None


RUNNING = {
    "with the notebook as a rank": "executor.submit(then_hang, 'here').result()",
    "apart": "executor.options(caller_rank=None).submit(then_hang, 'here').result()",
    "parked": "RankedExecutor(2, launcher=LocalLauncher('forkserver', standby=True))"
    ".submit(then_hang, 'here').result()",
}


@pytest.mark.parametrize("action", ["restart", "kill"])
@pytest.mark.parametrize("running", RUNNING)
def test_a_kernel_that_ends(tmp_path, action, running) -> None:
    """While a gang runs: no process of it is left, nor one of the executors' own."""
    files = [str(tmp_path / f"here{rank}") for rank in range(2)]
    drive_kernel(tmp_path, [BEGIN, [RUNNING[running], action, *files]])


@needs_torch
@pytest.mark.parametrize("action", ["restart", "kill"])
def test_a_kernel_that_ends_in_a_collective(tmp_path, action) -> None:
    """The same while its rank waits in C++, deaf to what the kernel is asked."""
    files = [str(tmp_path / f"collective{rank}") for rank in range(2)]
    cell = "executor.options(ctx=TorchDDPCtx()).submit(wait_in_a_collective).result()"
    drive_kernel(tmp_path, [BEGIN, WITH_TORCH, [cell, action, *files]])


def test_two_notebooks_at_once(tmp_path) -> None:
    """Each has its own ranks and output; one is stopped while the other's gang runs on."""
    meet = (
        "def meet(name, other):\n"
        "    mark(name)\n"
        "    wait_until(lambda: os.path.exists(f'{other}0') and os.path.exists(f'{other}1'))\n"
        "    print(f'{name} has met {other}\\n', end='')\n"
        "    return os.getpid()\n"
        "gathered = executor.options(gather=True)"
    )
    finish = (
        "def wait():\n"
        "    mark('waiting')\n"
        "    wait_until(lambda: os.path.exists('stopped'))\n"
        "executor.submit(wait).result()"
    )
    stop = stopped(tmp_path, "hang", "executor.submit(then_hang, 'hang').result()")
    stop += [str(tmp_path / f"waiting{rank}") for rank in range(2)]
    then = "pathlib.Path('stopped').touch()\nassert executor.submit(rank).result() == 0"

    def steps(name: str, other: str, *more: Any) -> list[Any]:
        return [BEGIN, meet, f"gathered.submit(meet, {name!r}, {other!r}).result()", *more]

    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(drive_kernel, tmp_path, steps("left", "right", finish)),
            pool.submit(drive_kernel, tmp_path, steps("right", "left", stop, then)),
        ]
        left, right = [run.result()[2:] for run in runs]
    for cell, name, other in ((left[0], "left", "right"), (right[0], "right", "left")):
        line = f"{name} has met {other}"
        assert whole_lines(cell["out"]) == [f"[rank 1] {line}", line]
    pids = [cell["shown"][0]["text/plain"] for cell in (left[0], right[0])]
    assert len({pid for shown in pids for pid in shown.strip("[]").split(", ")}) == 4
    assert (left[1]["error"], right[1]["error"]) == (None, "KeyboardInterrupt")
    assert right[1]["seconds"] < SOON
    assert right[2]["error"] is None
