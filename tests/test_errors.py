"""Errors: what they are caught as, what they say, and that they survive pickling."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle
from concurrent.futures import BrokenExecutor

import pytest

import rankexec
from rankexec import errors
from rankexec.errors import (
    GangTimeout,
    LauncherDied,
    NotShippable,
    PreloadError,
    RankDied,
    RankExecError,
    RankRaised,
    RemoteTraceback,
)

EXAMPLES = [
    RankExecError("anything"),
    NotShippable("argument 0 of f()", "cannot pickle 'socket' object"),
    RankRaised(1, "mod.Error", "no luck", "Traceback ..."),
    RankDied(1, 2, 4711, "host", -9, "last words"),
    GangTimeout(1.5, {1: "stack of 1", 0: "stack of 0"}),
    LauncherDied(1, 4711),
    PreloadError("module", "it starts threads"),
]


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (NotShippable, pickle.PicklingError),
        (RankRaised, Exception),
        (RankDied, BrokenExecutor),
        (GangTimeout, TimeoutError),
        (GangTimeout, concurrent.futures.TimeoutError),
        (LauncherDied, BrokenExecutor),
        (PreloadError, Exception),
    ],
)
def test_tree(kind, also):
    """Each is a RankExecError, and what those expect who know only the standard library."""
    assert issubclass(kind, RankExecError)
    assert issubclass(kind, also)


def test_all_are_public():
    """The package has every error that a user may catch."""
    for name in set(errors.__all__) - {"RemoteTraceback"}:
        assert getattr(rankexec, name) is getattr(errors, name)
        assert name in rankexec.__all__


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copied", "pickled"]
)
def test_round_trip(error, again):
    """Message, attributes and the ranks' outcomes arrive."""
    error.rank_outcomes = ["outcome", None]
    arrived = again(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.__dict__ == error.__dict__
    assert arrived.rank_outcomes == ["outcome", None]


def test_no_outcomes_without_a_gang():
    """Nobody has to ask whether the attribute is there."""
    assert RankExecError("x").rank_outcomes == []
    assert NotShippable("x", "y").rank_outcomes == []


def test_not_shippable():
    """It says what, why, and what to do."""
    error = NotShippable("argument 0 of f()", "it is an open file")
    assert error.what == "argument 0 of f()"
    assert str(error) == (
        "argument 0 of f() cannot be shipped to another process: it is an open file; "
        "make it inside the function, or pass what it is made from"
    )
    assert str(NotShippable("x", "y", "use gather=False")).endswith("; use gather=False")


def test_rank_raised():
    """It has what could be brought to the caller."""
    error = RankRaised(1, "mod.Error", "no luck", "Traceback ...")
    assert (error.rank, error.type_name, error.text) == (1, "mod.Error", "no luck")
    assert error.traceback_text == "Traceback ..."
    assert str(error).startswith("rank 1 raised mod.Error: no luck")


@pytest.mark.parametrize(
    ("exitcode", "signal_name", "said"),
    [
        (-11, "SIGSEGV", "died: killed by SIGSEGV"),
        (-9, "SIGKILL", "died: killed by SIGKILL (often the kernel, out of memory: see dmesg)"),
        (-250, "signal 250", "died: killed by signal 250"),
        (7, None, "died: exit code 7"),
        (0, None, "died: exit code 0"),
    ],
)
def test_rank_died(exitcode, signal_name, said):
    """It says which process, and how it ended."""
    error = RankDied(1, 2, 4711, "host", exitcode)
    assert (error.rank, error.world_size, error.pid, error.host) == (1, 2, 4711, "host")
    assert (error.exitcode, error.signal_name, error.stderr_tail) == (exitcode, signal_name, "")
    assert str(error) == f"rank 1 of 2 (pid 4711 on host) {said}"


def test_rank_died_with_last_words():
    """The end of its stderr is part of the message."""
    error = RankDied(0, 2, 4711, "host", 1, "one\ntwo")
    assert error.stderr_tail == "one\ntwo"
    assert str(error).endswith("exit code 1; the end of its stderr:\none\ntwo")


def test_gang_timeout():
    """It has the stacks of all ranks, and shows them by rank."""
    error = GangTimeout(1.5, {1: "stack of 1\n", 0: "stack of 0\n"})
    assert (error.timeout, error.stacks[1]) == (1.5, "stack of 1\n")
    assert str(error) == (
        "the gang did not finish within 1.5 s"
        "\n--- rank 0 ---\nstack of 0"
        "\n--- rank 1 ---\nstack of 1"
    )
    waited = GangTimeout(2.0, {}, "get its turn after f in thread 'x'")
    assert str(waited) == "the gang did not get its turn after f in thread 'x' within 2 s"


@pytest.mark.parametrize("pid", [4711, None])
def test_launcher_died(pid):
    """It names one of the ranks that ended with it; that one may not have begun."""
    error = LauncherDied(1, pid)
    assert (error.rank, error.pid) == (1, pid)
    assert f"rank 1 (pid {pid})" in str(error)


def test_preload_error():
    """It names the module, why, and what can be done."""
    error = PreloadError("module", "it starts threads")
    assert error.module == "module"
    assert str(error).startswith("'module' cannot be preloaded: it starts threads; ")
    assert "start_method='spawn'" in str(error)


def test_remote_traceback():
    """As a cause it is shown as the other process saw it."""
    error = RemoteTraceback("Traceback ...\nKeyError: 1\n")
    assert error.text == "Traceback ...\nKeyError: 1\n"
    assert str(error) == '\n"""\nTraceback ...\nKeyError: 1\n"""'
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_timeout_says_where_a_stack_is_missing():
    """A rank that gave none had not begun, or could not answer."""
    text = str(GangTimeout(1.5, {0: "stack of 0\n", 1: ""}))
    assert "--- rank 0 ---\nstack of 0\n--- rank 1 ---\n(no stack: " in text
