"""Wrong arguments: refused at once, with the argument's name, what it got and what it takes."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from inspect import signature

import pytest

from rankexec import LocalLauncher, RankedExecutor, TorchDDPCtx, mpify


class Enters:
    """Half a context manager."""

    def __enter__(self) -> None:
        """Enter."""


class PathOfBytes:
    """A path as `os.scandir(b".")` yields it."""

    def __fspath__(self) -> bytes:
        return b"there"


OPTIONS = {
    # argument: what it got, error, what it says that it takes
    "world_size": [
        (0, ValueError, "at least 1"),
        (-1, ValueError, "at least 1"),
        (1.0, TypeError, "an int"),
        ("2", TypeError, "an int"),
        (True, TypeError, "an int"),
    ],
    "caller_rank": [
        (2, ValueError, "0 to 1"),
        (-1, ValueError, "0 to 1"),
        (0.0, TypeError, "an int"),
        ("0", TypeError, "an int"),
        (False, TypeError, "an int"),
    ],
    "ctx": [
        (5, TypeError, "context manager"),
        (Enters(), TypeError, "context manager"),
    ],
    "gather": [
        ("all", TypeError, "callable"),
        (None, TypeError, "callable"),
        (1, TypeError, "callable"),
    ],
    "timeout": [
        (0, ValueError, "above 0"),
        (-1.5, ValueError, "above 0"),
        (float("nan"), ValueError, "above 0"),
        (10**400, ValueError, "float"),
        ("10", TypeError, "seconds"),
        (True, TypeError, "seconds"),
    ],
    "need": [
        (5, TypeError, "names"),
        (["a", 5], TypeError, "names"),
        (b"a", TypeError, "names"),
        ({"a": 1}, TypeError, "names"),
    ],
    "imports": [
        (5, TypeError, "import statements"),
        (["import os"], TypeError, "import statements"),
        ("import", ValueError, "parse"),
        ("x = 1", ValueError, "import statements"),
        ("import os; os.remove('x')", ValueError, "import statements"),
    ],
    "by_value": [
        (5, TypeError, "imported modules"),
        ("json", TypeError, "imported modules"),
        (json, TypeError, "list of imported modules"),
        (["json"], TypeError, "imported modules"),
        ([types.ModuleType("made_by_hand")], ValueError, "which is not imported"),
    ],
    "output": [
        (PathOfBytes(), TypeError, "a directory"),
        ("both", ValueError, "'all', 'caller'"),
        (None, TypeError, "'all', 'caller'"),
        (1, TypeError, "'all', 'caller'"),
        (["1"], TypeError, "list of ranks"),
        ([True], TypeError, "list of ranks"),
        ([2], ValueError, "no rank 2"),
        ([-1], ValueError, "no rank -1"),
    ],
    "env": [
        (["A=1"], TypeError, "mapping"),
        ({"A": 1}, TypeError, "strings"),
        ({1: "A"}, TypeError, "strings"),
        ({"": "1"}, ValueError, "names"),
        ({"A=B": "1"}, ValueError, "names"),
        ({"A": "\0"}, ValueError, "null"),
        ({"A": "\ud800"}, ValueError, "hold"),
        ({"RANK": "7"}, ValueError, "RANK"),
    ],
}
SHARED = {
    "devices": [
        (0, TypeError, "list of GPU ids"),
        ("01", TypeError, "list of GPU ids"),
        ([0.5, 1], TypeError, "GPU ids"),
        ([True, False], TypeError, "GPU ids"),
        ([], ValueError, "at least one"),
        ([0, 0], ValueError, "each once"),
        ([0, "0"], ValueError, "each once"),
    ],
    "max_gangs": [
        (0, ValueError, "at least 1"),
        ("1", TypeError, "an int"),
    ],
    "launcher": [
        ("spawn", TypeError, "LocalLauncher()"),
        (LocalLauncher, TypeError, "LocalLauncher()"),
    ],
}
CONTEXT = {
    "backend": [
        (5, TypeError, "string"),
        ("", (TypeError, ValueError), "string"),
    ],
    "world_size": [
        (0, ValueError, "from 1"),
        ("2", TypeError, "int"),
    ],
    "base_rank": [
        (-1, ValueError, "from 0"),
        (None, TypeError, "int"),
        (True, TypeError, "int"),
    ],
    "addr": [
        (5, TypeError, "string"),
        ("", (TypeError, ValueError), "string"),
    ],
    "port": [
        (0, ValueError, "from 1 to 65535"),
        (65536, ValueError, "from 1 to 65535"),
        ("29500", TypeError, "int"),
    ],
    "num_threads": [
        (0, ValueError, "from 1"),
        (1.5, TypeError, "int"),
    ],
    "timeout": [
        (0, ValueError, "more than 0"),
        (-1, ValueError, "more than 0"),
        ("10", TypeError, "seconds"),
        (True, TypeError, "seconds"),
    ],
}
LAUNCHER = {
    "start_method": [
        ("fork", ValueError, "forkserver"),
        (5, ValueError, "forkserver"),
    ],
    "preload": [
        ("json", TypeError, "list of module names"),
        (5, TypeError, "list of module names"),
        ([5], TypeError, "module names"),
        (["no_such_module_anywhere"], ValueError, "no_such_module_anywhere"),
    ],
    "standby_ttl": [
        (0, ValueError, "above 0"),
        ("60", TypeError, "seconds"),
    ],
}
MAP = {
    "chunksize": [
        (0, ValueError, "an int of at least 1"),
        (-1, ValueError, "an int of at least 1"),
        (1.5, TypeError, "an int of at least 1"),
        (None, TypeError, "an int of at least 1"),
    ],
    "buffersize": [
        (0, ValueError, "an int of at least 1"),
        (-1, ValueError, "an int of at least 1"),
        ("2", TypeError, "an int of at least 1"),
        (True, TypeError, "an int of at least 1"),
    ],
    "timeout": [
        ("1", TypeError, "seconds"),
        ([], TypeError, "seconds"),
    ],
}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """No process and no thread: the error comes first."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("rankexec.launchers._guarded.Guardians.lease", refuse)
    threads = threading.active_count()
    yield
    assert threading.active_count() <= threads


class NoLauncher:
    """A launcher that starts nothing."""

    def lease(self, *_details: object) -> None:
        """Be needed."""

    def release(self) -> None:
        """Be needed no more."""

    def start(self, *_details: object) -> None:
        """Fail: nothing may be started."""
        raise AssertionError("something was started")


@pytest.fixture
def executor():
    """An executor that was made before."""
    with RankedExecutor(2, caller_rank=None, launcher=NoLauncher()) as made:
        yield made


def check(name: str, wrong: list[tuple[object, ...]], make: Callable[..., object]) -> None:
    """Call `make` with every wrong value, and compare each error with what it has to say."""
    for value, error, takes in wrong:
        with pytest.raises(error) as caught:
            make(**{name: value})
        said = str(caught.value)
        assert name in said
        assert takes in said
        if isinstance(value, (int, float, bytes)) or (isinstance(value, str) and name != "imports"):
            assert repr(value) in said


@pytest.mark.parametrize("name", [*OPTIONS, *SHARED])
def test_executor(name) -> None:
    """RankedExecutor's arguments."""
    wrong = {**OPTIONS, **SHARED}[name]
    check(name, wrong, lambda **kwargs: RankedExecutor(**{"world_size": 2, **kwargs}))


@pytest.mark.parametrize("name", OPTIONS)
def test_options(executor, name) -> None:
    """The same of `options`."""
    check(name, OPTIONS[name], executor.options)


@pytest.mark.parametrize("name", CONTEXT)
def test_context(name) -> None:
    """TorchDDPCtx's arguments; torch is not asked."""
    check(name, CONTEXT[name], TorchDDPCtx)
    if name in signature(mpify.TorchDDPCtx).parameters:
        check(name, CONTEXT[name], mpify.TorchDDPCtx)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher(name) -> None:
    """LocalLauncher's arguments."""
    check(name, LAUNCHER[name], LocalLauncher)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"addr": "host"}, "addr and port go together"),
        ({"port": 29500}, "addr and port go together"),
        ({"world_size": 4}, "needs addr and port"),
        ({"base_rank": 2}, "needs addr and port"),
    ],
)
def test_context_across_hosts(arguments, says) -> None:
    """Arguments of TorchDDPCtx that do not fit together."""
    with pytest.raises(ValueError, match=says):
        TorchDDPCtx(**arguments)


@pytest.mark.parametrize("make", [RankedExecutor, TorchDDPCtx, LocalLauncher])
def test_misspelt(make) -> None:
    """No argument is swallowed."""
    for name in ("world_sizes", "callerrank", "gathers", "nprocs", "max_workers"):
        with pytest.raises(TypeError, match=name):
            make(**{name: 2})


def test_misspelt_or_shared_options(executor) -> None:
    """`options` takes what can differ between gangs, and says what that is."""
    for name in ("gathers", "devices", "max_gangs", "launcher"):
        with pytest.raises(TypeError, match=f"world_size.*env.*{name}"):
            executor.options(**{name: 2})


def test_only_world_size_goes_by_position() -> None:
    """The rest has names."""
    with pytest.raises(TypeError, match="positional"):
        RankedExecutor(2, None)


@pytest.mark.parametrize("make", ["executor", "options"])
def test_more_ranks_than_devices(executor, make, monkeypatch) -> None:
    """A gang that could never start is refused; both numbers are named."""
    if make == "executor":
        with pytest.raises(ValueError, match=r"world_size=3 .* 2 devices"):
            RankedExecutor(3, devices=[0, 1])
        return
    executor._shared.slots.devices = ["0", "1"]
    with pytest.raises(ValueError, match=r"world_size=3 .* 2 devices"):
        executor.options(world_size=3)


def test_caller_rank_that_no_longer_fits(executor) -> None:
    """`options` checks what was given before together with what is given now."""
    other = executor.options(caller_rank=1)
    with pytest.raises(ValueError, match="caller_rank takes 0 to 0"):
        other.options(world_size=1)


@pytest.mark.parametrize("method", ["submit", "map"])
def test_not_callable(executor, method) -> None:
    """A function that is none fails at once, and not on the ranks."""
    for fn in (None, 5, "print", [print]):
        with pytest.raises(TypeError, match="fn takes a callable"):
            getattr(executor, method)(fn, [1])


@pytest.mark.parametrize("method", ["submit", "map"])
def test_a_function_that_is_async(executor, method) -> None:
    """Nothing would run what it returns; also where it is partial, a method or an object."""

    class Training:
        async def run(self, epochs: int) -> None:
            """Be a method."""

        async def __call__(self, epochs: int) -> None:
            """Be called."""

    training = Training()
    for fn in (training.run, training, partial(training.run, 1)):
        with pytest.raises(TypeError, match=r"is `async` and only returns .* asyncio\.run\("):
            getattr(executor, method)(fn, [1])


@pytest.mark.parametrize("method", ["submit", "map"])
def test_without_a_function(executor, method) -> None:
    """`fn` goes by position, so that keyword arguments can have any name."""
    with pytest.raises(TypeError):
        getattr(executor, method)()
    if method == "submit":
        with pytest.raises(TypeError):
            executor.submit(fn=print)


@pytest.mark.parametrize("caller_rank", [0, None])
@pytest.mark.parametrize("name", MAP)
def test_map(executor, caller_rank, name) -> None:
    """Its own arguments are checked when it is called, not when a result is asked for."""
    executor = executor.options(caller_rank=caller_rank)
    check(name, MAP[name], lambda **kwargs: executor.map(abs, [1], **kwargs))


@pytest.mark.parametrize("caller_rank", [0, None])
def test_map_over_nothing_iterable(executor, caller_rank) -> None:
    """The same for what it is to map."""
    for items in (5, None):
        with pytest.raises(TypeError, match="iter"):
            executor.options(caller_rank=caller_rank).map(abs, items)


def test_ctx_that_makes_no_context_manager(monkeypatch) -> None:
    """What a callable makes is seen when it is called: in the future, which names `ctx`."""
    monkeypatch.undo()
    with RankedExecutor(1, ctx=os.getpid) as executor:
        future = executor.submit(int)
    with pytest.raises(TypeError, match="ctx made a int"):
        future.result()


@pytest.mark.parametrize("kind", [TorchDDPCtx, mpify.TorchDDPCtx])
def test_context_outside_a_gang(kind, monkeypatch) -> None:
    """Nobody but a rank can enter it: it says so, in this process too."""
    pytest.importorskip("torch")
    with pytest.raises(
        RuntimeError, match="LOCAL_RANK is set: TorchDDPCtx is entered by the ranks"
    ):
        kind().__enter__()
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(RuntimeError, match="is entered by the ranks of a gang"):
        kind().__enter__()
    assert "OMP_NUM_THREADS" not in os.environ


def test_under_gevent(monkeypatch):
    """A rank that waits in gevent's loop could not be broken off."""
    patched = types.SimpleNamespace(is_module_patched=lambda name: name == "time")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with RankedExecutor(2, launcher=NoLauncher()) as executor:
        for start in (partial(executor.submit, len, ""), executor.session):
            with pytest.raises(RuntimeError, match="rank 0 in it could not be broken"):
                start()
