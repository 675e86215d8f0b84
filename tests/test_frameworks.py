"""`_gang.frameworks`: trainers work in gangs, again and again, and alone afterwards.

Each of the scripts in frameworks/ trains a small model on real data in gangs of gloo ranks, rank 0
in the script's own process, and then by the same function without a gang.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from helpers import run_python, run_script

SCRIPTS = Path(__file__).resolve().parent / "frameworks"
SCANS = 1797


def train(name, folder, *needs):
    """Run a script; return what its gangs and its training alone came to, once both are checked."""
    for needed in ("torch", "sklearn", *needs):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    done = run_python([str(SCRIPTS / f"use_{name}.py")], folder, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["changed"] == []
    for gang in found["gangs"]:
        assert [rank["rank"] for rank in gang] == list(range(len(gang)))
        assert {rank["size"] for rank in gang} == {len(gang)}
        assert len({rank["weights"] for rank in gang}) == 1
    assert (found["alone"]["rank"], found["alone"]["size"]) == (0, 1)
    return found["gangs"], found["alone"]


def check_accuracy(gangs, alone, least):
    """Check that every rank, and the training alone, has learned something."""
    assert min(rank["accuracy"] for gang in [*gangs, [alone]] for rank in gang) > least


def check_shares(gangs, alone):
    """Check that a rank saw its share of the scans, in four epochs, and a process alone all."""
    batch = 32
    assert abs(alone["seen"] - 4 * SCANS) < 4 * batch
    for gang in gangs:
        for rank in gang:
            assert abs(rank["seen"] - 4 * SCANS / len(gang)) < 4 * batch


@pytest.mark.slow
def test_accelerate(tmp_path):
    """It works after an Accelerator of a process alone, in gangs of other sizes, and alone."""
    gangs, alone = train("accelerate", tmp_path, "accelerate")
    assert [len(gang) for gang in gangs] == [2, 2, 3]
    check_shares(gangs, alone)
    check_accuracy(gangs, alone, 0.8)


@pytest.mark.slow
def test_transformers(tmp_path):
    """Its Trainer works in two gangs, and alone, with arguments made before there were ranks."""
    gangs, alone = train("transformers", tmp_path, "transformers", "accelerate")
    check_shares(gangs, alone)
    check_accuracy(gangs, alone, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "fabric"])
def test_lightning(tmp_path, name):
    """`strategy="ddp"` works in a process with a prompt; Lightning knows the number of ranks."""
    gangs, alone = train(name, tmp_path, "lightning")
    if name == "lightning":
        assert {rank["environment"] for gang in gangs for rank in gang} == {"2"}
    check_shares(gangs, alone)
    check_accuracy(gangs, alone, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("tabular", 0.9), ("collab", 0.3), ("vision", 0.8)])
def test_fastai(tmp_path, kind, least):
    """`learn.distrib_ctx()` works without a GPU, and a learner alone afterwards."""
    needs = ["torchvision"] if kind == "vision" else []
    gangs, alone = train(f"fastai_{kind}", tmp_path, "fastai", "accelerate", *needs)
    check_accuracy(gangs, alone, least)


# --- what holds without them ---


def has_prompt(error=None):
    """Return whether this process has a prompt, or raise."""
    if error is not None:
        raise error
    return hasattr(sys, "ps1")


def test_no_rank_has_a_prompt(make_executor, caller_rank, monkeypatch):
    """The caller's, by which Lightning would refuse, is back afterwards, after a failure too."""
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    executor = make_executor(2, gather=True)
    assert executor.submit(has_prompt).result() == [False, False]
    assert sys.ps1 == "In : "
    with pytest.raises(ValueError, match="no"):
        executor.submit(has_prompt, ValueError("no")).result()
    assert sys.ps1 == "In : "


HELD = """
from accelerate.state import PartialState
from rankexec._gang import frameworks

state = PartialState._shared_state
state["of"] = "the caller"
own = {}
for call in (1, 2):
    with frameworks.held(own):
        frameworks.enter()
        print(call, state)
        state["of"] = "the rank"
    print(state)
frameworks.enter()
print(state)
frameworks.leave()
frameworks.leave()
print(state)
"""


IMPORTED_IN_A_CALL = """
from rankexec._gang import frameworks

frameworks.enter()
from accelerate.state import PartialState
PartialState._shared_state["of"] = "the rank"
frameworks.enter()
print(PartialState._shared_state)
frameworks.leave()
print(PartialState._shared_state)
"""


def test_import_in_a_call(tmp_path):
    """What a rank has imported itself is its own in its next call, and gone when it leaves."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs accelerate")
    assert run_script(tmp_path, IMPORTED_IN_A_CALL).splitlines() == ["{'of': 'the rank'}", "{}"]


def test_several_calls_of_one_rank(tmp_path):
    """What a rank keeps is there in its next call, and not in between, nor in another rank."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs accelerate")
    rank, caller = "{'of': 'the rank'}", "{'of': 'the caller'}"
    expected = ["1 {}", caller, f"2 {rank}", caller, "{}", caller]
    assert run_script(tmp_path, HELD).splitlines() == expected
