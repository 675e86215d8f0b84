"""The magics with a session: cells on the same ranks, which keep what cells set."""

from __future__ import annotations

import importlib.util

import pytest
from test_magics import BEGIN, lines, run  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not importlib.util.find_spec("IPython"), reason="needs IPython"),
]
SESSION = (BEGIN[0], "%ranks 2 --session", BEGIN[2])
APART = (BEGIN[0], "%ranks 2 --session --caller-rank none", BEGIN[2])


@pytest.fixture
def go(run):  # noqa: F811  # the fixture
    """Run cells in a session."""
    return lambda *cells, begin=SESSION: run(*cells, begin=begin)


def test_ranks_keep_what_cells_set(go) -> None:
    """Each its own; the notebook's rank in the notebook."""
    *_, found, here = go(
        "%%ranked\nmine = [rank()]\ntotal = 10",
        "%%ranked\nmine.append(rank())\ntotal += rank()",
        "%%ranked --gather both\nmine, total",
        "both, mine, total, 'RANK' in os.environ",
    )
    assert found["error"] is None
    assert here["value"] == "([([0, 0], 10), ([1, 1], 11)], [0, 0], 10, False)"


def test_what_the_notebook_binds_anew(go) -> None:
    """It travels with the next cell that reads it."""
    *_, found = go(
        "lr = 1",
        "%%ranked\nlr += rank()",
        "%%ranked --gather first\nlr",
        "lr = 50",
        "%%ranked --gather second\nlr",
        "first, second",
    )
    assert found["value"] == "([1, 2], [50, 50])"


@pytest.mark.parametrize("begin", [SESSION, APART])
def test_what_functions_read(go, begin) -> None:
    """A cell calls a function that calls another: what that reads travels when it is bound anew."""
    *_, found = go(
        "lr = 1\ndef rate(): return lr + rank()\ndef train(): return rate()",
        "%%ranked --gather first\ntrain()",
        "lr = 50",
        "%%ranked --gather second\ntrain()",
        "first, second",
        begin=begin,
    )
    assert found["value"] == "([1, 2], [50, 51])"


@pytest.mark.parametrize("begin", [SESSION, APART])
def test_value_that_the_notebook_had(go, begin) -> None:
    """What a cell sets is each rank's own, also if it is what the notebook had by that name."""
    *_, found = go(
        "where = 0",
        "%%ranked\nwhere = rank()",
        "%%ranked --gather there\nwhere",
        "there",
        begin=begin,
    )
    assert found["value"] == "[0, 1]"


def test_same_processes(go) -> None:
    """They are shown, with what they use; a failed cell does not end them."""
    table, _, failed, _, found, shown = go(
        "%ranks",
        "%%ranked --gather before\nos.getpid()",
        "%%ranked\nif rank(): raise ValueError('no')\nimport time\ntime.sleep(600)",
        "%%ranked --gather after\nos.getpid()",
        "before == after, len(set(after)), os.getpid() == after[0]",
        "%ranks --info",
    )
    assert "2 ranks, the notebook is rank 0, held open" in str(table["shown"])
    assert " MiB" in str(table["shown"])
    assert failed["error"] == "ValueError"
    assert found["value"] == "(True, 2, True)"
    assert " MiB" in str(shown["shown"])


def test_session_without_the_notebook(go) -> None:
    """The remote namespace is not the notebook's; rank 0's value and output are shown."""
    *_, cell, after, refused = go(
        "kept = 1",
        "%%ranked\nkept += 10 + rank()\nsay(kept)\nkept",
        "kept",
        "%%ranked --everywhere\n1",
        begin=APART,
    )
    assert (cell["error"], after["value"]) == (None, "1")
    assert lines(cell["out"])[:1] + lines(cell["out"])[-1:] == ["11", "[rank 1] 12"]
    assert refused["error"] == "UsageError"
    assert "the notebook is no rank of this session" in refused["text"]


def test_names_set_on_the_ranks_stay_theirs(go) -> None:
    """Even if the notebook has something by that name."""
    *_, found = go(
        "model = 'of the notebook'",
        "%%ranked\nmodel = f'of rank {rank()}'",
        "%%ranked --gather models\nmodel",
        "models, model",
        begin=APART,
    )
    assert found["value"] == "(['of rank 0', 'of rank 1'], 'of the notebook')"


def test_remote_cells(go) -> None:
    """The notebook is a rank of the session: they would need other ranks."""
    (refused,) = go("%%ranked --remote\n1")
    assert refused["error"] == "UsageError"
    assert "the notebook is rank 0 of this session" in refused["text"]


def test_restart(go) -> None:
    """A lost session says how to go on; the ranks that follow begin with nothing."""
    *_, died, lost, restarted, after, found = go(
        "%%ranked\nonly = 5",
        "del only",
        "%%ranked\nif rank(): os._exit(3)",
        "%%ranked\n1",
        "%ranks --restart",
        "%%ranked --gather there\n'only' in globals()",
        "there",
    )
    assert died["error"] == "RankDied"
    assert lost["error"] == "UsageError"
    assert "exit code 3" in lost["text"]
    assert "%ranks --restart" in lost["text"]
    assert restarted["error"] is after["error"] is None
    assert found["value"] == "[False, False]"


def test_restart_of_nothing(run) -> None:  # noqa: F811  # the fixture
    """Without a session there is nothing to restart."""
    (refused,) = run("%ranks --restart")
    assert refused["error"] == "UsageError"
    assert "there is no session" in refused["text"]


def test_figures_of_other_ranks(go) -> None:
    """They are collected in every cell."""
    first, second = go(
        *["%%ranked --see 1\nfrom IPython.display import HTML\nHTML(str(rank()))"] * 2
    )
    for cell in (first, second):
        assert cell["shown"][-1]["text/html"] == "1"
