"""What a rank finds in its process, and what the caller finds in its own afterwards."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from contextlib import nullcontext

import loky
import psutil
import pytest
import ranked_functions
from helpers import with_children_only, with_the_caller

TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMP_NUM_THREADS",
    "ACCELERATE_USE_CPU",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
)


@pytest.fixture(autouse=True)
def _unset(monkeypatch) -> None:
    """Let the caller be a process in which nobody has set any of these."""
    for name in (*TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# --- variables ---


def test_torchruns_variables(make_executor) -> None:
    """Every rank has all of them, with its own numbers."""
    found = make_executor(2, gather=True).submit(ranked_functions.variables, *TORCHRUN).result()
    loopback = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if "127.0.0.1" in [address.address for address in addresses]
    ]
    assert len({variables.pop("MASTER_PORT") for variables in found}) == 1
    for rank, variables in enumerate(found):
        assert variables == {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RUN_ID": "rankexec",
            "OMP_NUM_THREADS": str(max(1, loky.cpu_count() // 2)),
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": loopback[0],
            "NCCL_SOCKET_IFNAME": loopback[0],
        }


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("OMP_NUM_THREADS", "7"),
        ("GLOO_SOCKET_IFNAME", "eth7"),
        ("NCCL_SOCKET_IFNAME", "eth7"),
        ("TORCHELASTIC_USE_AGENT_STORE", None),
        ("RANKEXEC_TEST_A", "7"),
    ],
)
@pytest.mark.parametrize("by", ["the environment", "env="])
def test_what_the_user_has_set(make_executor, monkeypatch, name, seen, by) -> None:
    """It stays, but for what would send `env://` to a store that is not ours."""
    value = "eth7" if "SOCKET" in name else "7"
    options = {}
    if by == "env=":
        options["env"] = {name: value}
        seen = value  # said for these gangs, it is meant
    else:
        monkeypatch.setenv(name, value)
    executor = make_executor(2, gather=True, **options)
    assert executor.submit(os.getenv, name).result() == [seen, seen]


def test_master_port(make_executor) -> None:
    """Rank 0 can listen on it, as a framework that makes its own group does; again and again."""

    def listen() -> int:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            listener.listen()
            return listener.getsockname()[1]

    executor = make_executor(1)
    ports = [executor.submit(listen).result() for _ in range(3)]
    assert all(port > 1023 for port in ports)


def test_nobody_else_gets_the_master_port(make_executor) -> None:
    """It is reserved for the gang as long as that runs."""

    def take() -> str:
        with socket.socket() as other:
            try:
                other.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
            except OSError:
                return "taken"
        return "free"

    assert make_executor(1).submit(take).result() == "taken"


def test_env(make_executor) -> None:
    """`env` is for ranks; the caller's environment is its own again afterwards."""
    executor = make_executor(2, env={"RANKEXEC_TEST_A": "a=b c"}, gather=True)
    assert executor.submit(os.getenv, "RANKEXEC_TEST_A").result() == ["a=b c"] * 2
    assert "RANKEXEC_TEST_A" not in os.environ


class ReadOnArrival:
    """Arrives as the value that a variable has at that moment."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> object:
        return os.getenv, (self.name,)


@with_children_only
def test_children_have_them_before_the_call(make_executor) -> None:
    """Libraries read variables when they are imported, which unpacking the call may do."""
    names = [ReadOnArrival("LOCAL_RANK"), ReadOnArrival("OMP_NUM_THREADS")]
    executor = make_executor(2, gather=True, env={"OMP_NUM_THREADS": "7"})
    found = executor.submit(ranked_functions.returning, names).result()
    assert found == [["0", "7"], ["1", "7"]]


def test_todays_environment(make_executor, monkeypatch) -> None:
    """Ranks have the environment of the moment of the call."""
    executor = make_executor(2, gather=True)
    for value in ("1", "2"):
        monkeypatch.setenv("RANKEXEC_TEST_A", value)
        assert executor.submit(os.getenv, "RANKEXEC_TEST_A").result() == [value] * 2
    monkeypatch.delenv("RANKEXEC_TEST_A")
    assert executor.submit(os.getenv, "RANKEXEC_TEST_A").result() == [None] * 2


def test_a_gang_of_children_during_a_gang_of_the_caller(make_executor) -> None:
    """Nothing of the caller's rank gets into it."""
    with make_executor(3, caller_rank=None) as children:
        executor = make_executor(1, caller_rank=0, env={"RANKEXEC_TEST_A": "1"})
        names = ("WORLD_SIZE", "RANKEXEC_TEST_A")
        inner = executor.submit(
            lambda: children.submit(ranked_functions.variables, *names).result()
        )
        assert inner.result() == {"WORLD_SIZE": "3", "RANKEXEC_TEST_A": None}


# --- the caller afterwards: `no_leftovers` compares the rest ---


@with_the_caller
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_caller_is_as_before(make_executor, world_size) -> None:
    """Also after a failure: variables, directory, handlers, `__main__`."""
    before = dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGTERM)
    main = sys.modules["__main__"]
    future = make_executor(world_size).submit(ranked_functions.change_the_process)
    assert isinstance(future.exception(), ValueError)
    assert (dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGTERM)) == before
    assert sys.modules["__main__"] is main


@with_the_caller
def test_a_directory_that_is_gone_afterwards(make_executor) -> None:
    """The caller is back in its own though the function has removed the one it went to."""
    before = os.getcwd()
    assert make_executor(1).submit(ranked_functions.work_in_a_directory_and_remove_it).result() == 1
    assert os.getcwd() == before


@with_the_caller
def test_the_callers_directory_removed(make_executor, monkeypatch, tmp_path) -> None:
    """Where there is no way back, a warning says so; the result stands."""
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    executor = make_executor(1)
    with pytest.warns(UserWarning, match="directory is not restored"):
        future = executor.submit(ranked_functions.remove_the_directory)
    assert future.result() == 1
    os.chdir(tmp_path)


@with_the_caller
def test_a_handler_that_python_does_not_see(make_executor) -> None:
    """Only what changed is put back: faulthandler's own handlers stay."""
    import faulthandler

    was = faulthandler.is_enabled()
    faulthandler.enable()
    make_executor(1).submit(int).result()
    assert faulthandler.is_enabled()
    if not was:
        faulthandler.disable()


# --- the rest of a child's process ---


@with_children_only
def test_a_childs_process(make_executor, monkeypatch, tmp_path) -> None:
    """It has the caller's directory, path and arguments of the moment, and an empty stdin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    (tmp_path / "rankexec_test_module.py").write_text("value = 5")

    def look() -> tuple[object, ...]:
        import rankexec_test_module

        return os.getcwd(), sys.argv, rankexec_test_module.value, sys.stdin.read()

    assert make_executor(1).submit(look).result() == (
        str(tmp_path),
        ["program", "--option"],
        5,
        "",
    )


def test_workers_of_a_rank(make_executor) -> None:
    """A rank may have processes of its own, by multiprocessing as by subprocess."""

    def use_a_pool() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(abs, [-1, -2])

    assert make_executor(2, caller_rank=None).submit(use_a_pool).result() == [1, 2]


# --- need=, imports= ---


@pytest.fixture
def main(monkeypatch):
    """Names in the caller's `__main__`, for the time of a test."""
    module = sys.modules["__main__"]
    monkeypatch.setattr(module, "answer", 42, raising=False)
    monkeypatch.setattr(module, "json", "the user's own", raising=False)
    return module


@pytest.mark.parametrize("need", ["answer json", "answer,json", ["answer", "json"]])
def test_need(make_executor, main, need) -> None:
    """Every rank finds the names in its `__main__`."""
    executor = make_executor(2, need=need, gather=True)

    def look() -> tuple[object, object]:
        module = sys.modules["__main__"]
        return module.answer, module.json

    assert executor.submit(look).result() == [(42, "the user's own")] * 2


def test_need_of_the_moment(make_executor, main, monkeypatch) -> None:
    """The value is that of the moment of the call."""
    executor = make_executor(2, need="answer", gather=True)
    monkeypatch.setattr(main, "answer", 43)
    assert executor.submit(lambda: sys.modules["__main__"].answer).result() == [43, 43]


def test_need_of_what_is_not_there(make_executor) -> None:
    """It fails where the call is made, and names it."""
    executor = make_executor(2, need="no_such_name")
    with pytest.raises(NameError, match="no_such_name"):
        executor.submit(int).result()


def test_imports(make_executor, main) -> None:
    """Every rank's `__main__` has them, the caller's for the time of the gang only."""
    executor = make_executor(2, imports="import fractions as f\nfrom os import path", gather=True)

    def look() -> tuple[str, ...]:
        module = sys.modules["__main__"]
        return module.f.__name__, module.path.__name__

    assert executor.submit(look).result() == [("fractions", os.path.__name__)] * 2
    assert not hasattr(main, "f")
    assert not hasattr(main, "path")


@with_the_caller
def test_imports_leave_the_users_names_alone(make_executor, main) -> None:
    """A name that the caller's `__main__` has already stays what it is there."""
    executor = make_executor(2, imports="import json", gather=True)
    mine, theirs = executor.submit(lambda: str(sys.modules["__main__"].json)).result()
    assert mine == main.json == "the user's own"
    assert "module 'json'" in theirs


def test_imports_that_fail(make_executor) -> None:
    """The error is the future's, from whichever rank."""
    executor = make_executor(2, imports="import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        executor.submit(int).result()


@with_children_only
def test_imports_come_before_the_call(make_executor, tmp_path, monkeypatch) -> None:
    """Nothing is unpickled before: libraries patch classes on import."""
    (tmp_path / "patches.py").write_text("import patched\npatched.ready = True\n")
    (tmp_path / "patched.py").write_text(
        "import patched\n"
        "def rebuild(): return patched.ready\n"
        "class Picky:\n"
        "    def __reduce__(self): return rebuild, ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    patched = importlib.import_module("patched")
    executor = make_executor(2)
    with pytest.raises(AttributeError, match="ready"):
        executor.submit(ranked_functions.returning, patched.Picky()).result()
    again = executor.options(imports="from patches import *")
    assert again.submit(ranked_functions.returning, patched.Picky()).result() is True
    del sys.modules["patched"]


def test_a_caller_whose_directory_is_gone(make_executor, tmp_path, monkeypatch) -> None:
    """Ranks start in it: the error says so, and the executor is usable when there is one again."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    executor = make_executor()
    with pytest.raises(FileNotFoundError, match="working directory is gone"):
        executor.submit(ranked_functions.rank).result()
    os.chdir(tmp_path)
    assert executor.submit(ranked_functions.rank).result() == 0


class Yields(nullcontext):
    """A context whose caller side yields what it is told."""

    def __init__(self, variables: object) -> None:
        super().__init__()
        self.variables = variables

    def caller_side(self, *_: object) -> nullcontext:
        """Give it to the ranks."""
        return nullcontext(self.variables)


@pytest.mark.parametrize(
    ("variables", "kind", "says"),
    [
        ({"A": 1}, TypeError, "strings"),
        ({"A=B": "1"}, ValueError, "names"),
        (["A=1"], TypeError, "mapping"),
    ],
)
def test_what_a_context_yields(make_executor, variables, kind, says) -> None:
    """What its caller side gives the ranks is checked before they start, and it is named."""
    with pytest.raises(kind, match=f"caller_side of Yields is to yield .*{says}"):
        make_executor(ctx=Yields(variables)).submit(os.getpid).result()


@with_children_only
def test_breakpoint(make_executor, monkeypatch) -> None:
    """A child has no terminal, and says where there is one; `PYTHONBREAKPOINT` goes before."""
    error = make_executor(1).submit(breakpoint).exception()
    assert isinstance(error, RuntimeError)
    assert "RankedExecutor(..., caller_rank=0) runs it in the calling process" in str(error)
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    assert make_executor(2).submit(breakpoint).result() is None
