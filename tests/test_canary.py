"""The private parts of others that this library stands on: whoever changes one is noticed here.

They are private, so a release may change them without a word. Each is named with what breaks
without it; a last test finds those that the package uses and that are not named.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import concurrent.futures
import ctypes
import enum
import functools
import importlib
import inspect
import io
import multiprocessing
import multiprocessing.heap
import multiprocessing.reduction
import multiprocessing.sharedctypes
import os
import pathlib
import pickle
import random
import sys
import threading
import traceback
import weakref
from typing import Any

import cloudpickle
import multiprocess
import multiprocess.heap
import multiprocess.reduction
import multiprocess.sharedctypes
import pytest
from cloudpickle import cloudpickle as private
from multiprocess import context, process, resource_tracker, shared_memory, spawn, util

import rankexec

TWINS = ["multiprocess", "multiprocessing"]


@pytest.fixture(scope="module", autouse=True)
def _trackers() -> None:
    """The first semaphore of a process starts one, which stays."""
    for name in TWINS:
        importlib.import_module(f"{name}.resource_tracker").ensure_running()


CALLED = [
    # cloudpickle: functions and classes by value, hints, and who knows which class
    (
        "cloudpickle.cloudpickle",
        "_lookup_module_and_qualname",
        1,
        "whether an object is importable",
    ),
    ("cloudpickle.cloudpickle", "_is_registered_pickle_by_value", 1, "by_value="),
    ("cloudpickle.cloudpickle", "_should_pickle_by_reference", 1, "classes of results"),
    ("cloudpickle.cloudpickle", "_extract_code_globals", 1, "which variables a function brings"),
    ("cloudpickle.cloudpickle", "_lookup_class_or_track", 2, "that a class arrives once"),
    ("cloudpickle.cloudpickle", "_get_or_create_tracker_id", 1, "that a TypeVar arrives once"),
    ("cloudpickle.cloudpickle", "_class_setstate", 2, "the members of classes by value"),
    ("cloudpickle.cloudpickle", "_function_setstate", 2, "functions that come to a session"),
    ("copyreg", "_slotnames", 1, "what a session's ranks have made in slots"),
    ("cloudpickle.cloudpickle", "_make_skeleton_class", 6, "which reductions are of classes"),
    # multiprocess, multiprocessing and loky: how ranks are started, and what they leave behind
    ("multiprocess.util", "_args_from_interpreter_flags", 0, "the flags of fresh interpreters"),
    ("multiprocess.util", "spawnv_passfds", 3, "which processes are trackers"),
    ("multiprocessing.util", "spawnv_passfds", 3, "which processes are trackers"),
    ("multiprocess.spawn", "get_preparation_data", 1, "the __main__ of ranks"),
    ("multiprocess.spawn", "prepare", 1, "the __main__ of ranks"),
    ("multiprocess.resource_tracker", "register", 2, "who removes shared memory"),
    ("multiprocess.resource_tracker", "unregister", 2, "who removes shared memory"),
    ("multiprocessing.resource_tracker", "register", 2, "who removes shared memory"),
    ("multiprocessing.resource_tracker", "unregister", 2, "who removes shared memory"),
    ("loky.backend.utils", "kill_process_tree", 1, "ending ranks without a guardian"),
    # the interpreter: how a rank ends, and an executor that is still there at exit
    ("threading", "_register_atexit", 1, "shutdown at interpreter exit"),
    ("threading", "_shutdown", 0, "waiting for a rank's threads"),
    # torch
    ("torch._utils", "_rebuild_tensor_v3", 7, "tensors of float8 and uint16"),
    ("torch.nn.utils.parametrize", "_inject_new_class", 1, "parametrized modules"),
    ("torch.nn.utils.parametrize", "_inject_property", 2, "parametrized modules"),
]


@pytest.mark.parametrize(("module", "name", "given", "breaks"), CALLED)
def test_called(module, name, given, breaks) -> None:
    """It is there, and takes as many arguments as it is called with."""
    if module.startswith("torch"):
        pytest.importorskip("torch")
    function = getattr(importlib.import_module(module), name, None)
    assert function is not None, f"{module} has no {name} any more; it is for {breaks}"
    try:
        inspect.signature(function).bind(*range(given))
    except TypeError as error:
        pytest.fail(f"{module}.{name} takes other arguments; it is for {breaks}: {error}")


# --- cloudpickle ---


def test_how_a_function_is_reduced() -> None:
    """`dynamic` adds to its globals, `picklers` replaces its closure, `naming` walks the state."""
    base = 1

    def function() -> int:
        return base

    pickler = cloudpickle.Pickler(io.BytesIO(), protocol=5, buffer_callback=lambda _: True)
    made_by, args, state, *_, setter = pickler._dynamic_function_reduce(function)
    assert callable(made_by)
    assert callable(setter)
    assert [type(part) for part in state] == [dict, dict], "(attributes, slots)"
    assert {"__globals__", "__closure__"} <= state[1].keys()
    assert args[0] is function.__code__
    *_, namespace, _, _, closure = pickler._function_getnewargs(function)
    assert namespace is pickler.globals_ref[id(function.__globals__)]
    assert len(closure) == len(function.__closure__), "the last argument is the closure"


def test_how_a_class_is_reduced() -> None:
    """`dynamic.add_to_class` takes all of it apart."""

    class Local:
        member = 1

    pickler = cloudpickle.Pickler(io.BytesIO(), protocol=5)
    made_by, args, state, *_ = pickler.reducer_override(Local)
    assert made_by is private._make_skeleton_class
    meta, name, bases, namespace, tracked, _ = args
    assert (meta, name, bases) == (type, "Local", (object,))
    assert namespace["__module__"] == __name__
    members, slots = state
    assert members["member"] == 1
    assert isinstance(slots, dict)
    assert private._DYNAMIC_CLASS_TRACKER_BY_CLASS[Local] == tracked


def test_how_an_enum_is_reduced() -> None:
    """`enums` needs the id by which it is known."""
    local = enum.Enum("local", "A B", module="nowhere")
    _, args, (members, slots), *_ = cloudpickle.Pickler(io.BytesIO()).reducer_override(local)
    assert private._DYNAMIC_CLASS_TRACKER_BY_CLASS[local] == args[-2]
    assert isinstance(members, dict)
    assert isinstance(slots, dict)
    assert (local.A._name_, local.A._value_, local._member_type_) == ("A", 1, object)
    assert list(local._member_map_) == ["A", "B"]


def test_which_classes_are_known() -> None:
    """A class that is rebuilt is noted with its id; both tables forget it with the class."""
    kind = type("Kind", (), {})
    assert private._lookup_class_or_track("an id of the canary", kind) is kind
    assert private._DYNAMIC_CLASS_TRACKER_BY_ID["an id of the canary"] is kind
    assert private._DYNAMIC_CLASS_TRACKER_BY_CLASS[kind] == "an id of the canary"
    assert isinstance(private._DYNAMIC_CLASS_TRACKER_BY_ID, weakref.WeakValueDictionary)
    assert isinstance(private._DYNAMIC_CLASS_TRACKER_BY_CLASS, weakref.WeakKeyDictionary)
    assert private._lookup_module_and_qualname(pathlib.Path) == (
        sys.modules[pathlib.Path.__module__],
        "Path",
    )


# --- pickle ---


def test_the_pickler_in_python() -> None:
    """`replay` takes over its table of types, method by method."""
    parts = "none bool long float bytes bytearray picklebuffer str tuple list dict set frozenset"
    named = [f"save_{part}" for part in f"{parts} global type".split()]
    assert [name for name in named if not hasattr(pickle._Pickler, name)] == []
    assert isinstance(pickle._Pickler.dispatch, dict)
    assert "obj" in inspect.signature(pickle._Pickler.save_reduce).parameters


class Refuses:
    """Cannot be pickled; locks can, where dill is imported: its functions are in pickle's table."""

    def __reduce__(self) -> Any:
        raise TypeError("canary")


class Holder:
    """Its state leads to what cannot be pickled."""

    def __init__(self) -> None:
        self.held = [Refuses()]


def test_the_frames_of_the_pickler() -> None:
    """`replay` and `naming` read in them where in a call that is which was refused."""
    holder = Holder()
    with pytest.raises(TypeError, match="canary") as info:
        pickle._Pickler(io.BytesIO(), 5).dump(holder)
    seen: list[Any] = []
    for frame, _ in traceback.walk_tb(info.value.__traceback__):
        if frame.f_code is pickle._Pickler.save.__code__:
            seen.append(frame.f_locals["obj"])
        elif frame.f_code is pickle._Pickler.save_reduce.__code__:
            assert isinstance(frame.f_locals["args"], tuple)
            assert frame.f_locals["state"] is vars(holder)
    assert [type(obj) for obj in seen] == [Holder, dict, list, Refuses]


# --- multiprocess and multiprocessing ---


@pytest.mark.parametrize("name", TWINS)
def test_what_they_share(name) -> None:
    """`primitives` has pipes, semaphores and memory travel by what these libraries register."""
    twin = {"multiprocess": multiprocess, "multiprocessing": multiprocessing}[name]
    own = twin.reduction.ForkingPickler._extra_reducers
    reads, writes = twin.Pipe()
    with reads, writes:
        assert callable(own[type(reads)])
    assert isinstance(twin.get_context("spawn").Lock()._semlock.name, str)
    # Which keep a file of their own: not made here, as it would stay.
    assert callable(twin.heap.BufferWrapper)
    assert "_wrapper" in inspect.getsource(twin.sharedctypes.reduce_ctype)
    assert twin.context.get_spawning_popen() is None
    assert callable(twin.context.set_spawning_popen)


def test_what_starts_ranks() -> None:
    """`_command` and `plan` ask for flags and preparation; `_popen` forgets children in a fork."""
    assert isinstance(process._children, set)
    assert all(isinstance(flag, str) for flag in util._args_from_interpreter_flags())
    assert {"sys_path", "dir"} <= spawn.get_preparation_data("canary").keys()
    assert context.get_spawning_popen() is None


def test_who_registers_shared_memory(monkeypatch) -> None:
    """`trackers` sees in the frame of who asks whether the block is new, and starts are seen."""
    seen = []

    def register(name: str, kind: str) -> None:
        seen.append((name, kind, sys._getframe(1).f_locals["create"]))

    tracker = resource_tracker._resource_tracker
    assert hasattr(tracker, "_fd")
    monkeypatch.setattr(resource_tracker, "register", register)
    monkeypatch.setattr(resource_tracker, "unregister", lambda *_: None)
    block = shared_memory.SharedMemory(create=True, size=1)
    block.close()
    block.unlink()
    assert seen == [(block._name, "shared_memory", True)]
    assert "util.spawnv_passfds" in inspect.getsource(type(tracker)), "it starts its process so"


# --- the interpreter ---


def test_what_threads_hold() -> None:
    """`transient` makes conditions and semaphores anew, `deferred` waits with a future's."""
    assert threading.Condition()._lock.acquire(blocking=False)
    assert threading.BoundedSemaphore(3)._initial_value == 3
    future: Any = concurrent.futures.Future()
    assert callable(future._invoke_callbacks), "RankedFuture's"
    assert (type(future._waiters), future._state) == (list, concurrent.futures._base.PENDING)
    for name in ("CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"):
        assert hasattr(concurrent.futures._base, name)
    told = ("add_result", "add_exception", "add_cancelled")
    assert all(hasattr(concurrent.futures._base._Waiter, name) for name in told)


def test_how_a_process_ends() -> None:
    """`finish` runs what the interpreter would have run; fork and threads are asked by `sys`."""
    assert callable(atexit._run_exitfuncs)
    assert isinstance(weakref.finalize._registry, dict)
    own = threading.get_ident()
    assert sys._current_frames()[own] is sys._getframe()
    assert own in sys._current_exceptions()


def test_what_is_one_per_process() -> None:
    """`transient`, `reducers`, `primitives` and the magics' help know these by name."""
    assert isinstance(random._inst, random.Random)
    assert random.random.__self__ is random._inst
    assert isinstance(functools.cache(len), functools._lru_cache_wrapper)
    assert issubclass(ctypes.c_int, ctypes._SimpleCData)
    parser = argparse.ArgumentParser()
    parser.add_argument("--option", help="words")
    assert (parser._actions[-1].help, parser._actions[-1].option_strings) == ("words", ["--option"])


# --- numpy and torch ---


def test_numpy(tmp_path) -> None:
    """`arrays` finds an array's file, `transient` the generator behind `numpy.random`."""
    np = pytest.importorskip("numpy")
    mapped = np.memmap(tmp_path / "file", dtype="u1", mode="w+", shape=4)
    assert mapped.base is mapped._mmap
    assert np.random.mtrand._rand is np.random.rand.__self__


def test_torch_s_storages() -> None:
    """`storages` and `tensors` take them apart and share them."""
    torch = pytest.importorskip("torch")
    untyped = torch.ones(2).untyped_storage()
    made = torch.storage.TypedStorage(wrap_storage=untyped, dtype=torch.float32, _internal=True)
    assert made._untyped_storage is untyped
    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_shared_filename_cpu"):
        assert callable(getattr(torch.UntypedStorage, name)), name
    reductions = importlib.import_module("torch.multiprocessing.reductions")
    assert len(inspect.signature(reductions.rebuild_storage_fd).parameters) == 3
    tensor = torch.zeros(2, dtype=torch.uint16)
    assert tensor.__reduce_ex__(2)[0] is torch._utils._rebuild_tensor_v3
    shared = torch.zeros(1).share_memory_().untyped_storage()
    assert shared.filename is None, "only memory of a file has a name: `storages` asks it first"


def test_torch_s_groups() -> None:
    """`_torch` serves a store on a socket of its own, and frees a rank from NCCL.

    `_preload` asks whether a module has touched CUDA, which a fork does not stand.
    """
    torch = pytest.importorskip("torch")
    distributed = pytest.importorskip("torch.distributed")
    assert "master_listen_fd" in str(distributed.TCPStore.__init__.__doc__)
    assert callable(distributed.distributed_c10d._abort_process_group)
    assert hasattr(distributed.distributed_c10d, "default_pg_timeout")
    assert torch.cuda._is_in_bad_fork() is False


# --- all of them ---


ELSEWHERE = {"_kind", "_why", "_shared_state"}
"""Attributes of our own, set by their names; accelerate's, which test_frameworks runs."""


def private_names() -> dict[str, str]:
    """Return the private names of others that the package uses, and where."""
    root = pathlib.Path(rankexec.__file__).parent
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in root.rglob("*.py")}
    used: dict[str, str] = {}
    ours = set()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                ours.add(node.attr)
            elif isinstance(node, ast.Attribute):
                used[node.attr] = f"{path.relative_to(root)}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and "rankexec" not in str(node.module):
                used.update({a.name: f"{path.relative_to(root)}:{node.lineno}" for a in node.names})
    return {
        name: where
        for name, where in used.items()
        if name.startswith("_") and not name.startswith("__") and name not in {*ours, *ELSEWHERE}
    }


def test_all_are_named() -> None:
    """What the package takes from others that is private stands in this file."""
    here = pathlib.Path(__file__).read_text(encoding="utf-8")
    assert {n: where for n, where in private_names().items() if n not in here} == {}


def test_environment():
    """os.environ keeps all of it, encoded, in one dict: without, each call decodes it in Python."""
    assert os.environ._data.items() == os.environb._data.items()
    assert len(os.environ._data) == len(os.environ)
