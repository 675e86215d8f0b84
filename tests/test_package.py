"""The package as a whole: names, layers, sizes, docstrings, and what importing it costs.

It looks at the package that is imported, wherever that is installed.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import pathlib
import re
import types
from collections.abc import Iterator

import pytest
from helpers import run_python

import rankexec

LAYERS = """
    rankexec                    mpify               magics              ddip
    _notebook.group
    _notebook.page
    executor                    _notebook.autoranked                    _notebook.table
    _shared                     launchers._guardian                     session
    _exit                       _supervisors                            _block
    launchers.local             launchers._forked   _gang.opened
    launchers._popen            launchers._standby  launchers._unguarded
    launchers._deputy
    launchers._guarded          launchers._ranks    _gang.standing      _notebook.cell
    launchers._ends             _gang.worker        _gang.fresh         _gang.watch
    launchers._preload          launchers._pages    _gang.child         launchers._command
    launchers._spawned          launchers._preloading                   launchers._kinds
    _gang.held                  _gang.run           _gang.leaving
    _gang.failures
    _gang.gang
    _gang.crew
    _gang.reap
    _gang.members               _gang.plan
    launchers                   _gang.sinks
    _gang.channel               _gang.shipping
    _gang.naming                _gang.owned
    _gang.wire                  _gang.caller        _settings           _future
    _gang.replay                _gang.outcomes      _gang.restore       _gang.arrived
    _gang.interrupts
    _gang.picklers              _gang.breaking
    _gang.reducers              _gang.names
    _gang.arrays                _gang.storages      _gang.whole         _gang.hints
    _gang.exceptions
    _gang.reading               _gang.files         _gang.primitives    _gang.travelled
    _gang.dynamic               _gang.refusals      _gang.transient
    _gang.definitions
    _gang.parts
    _gang.known                 _gang.enums         _gang.within        _gang.spans
    _gang.alike
    _gang.bound                 _notebook.dip_options
    _gang.namespace             _gang.deep          _gang.identity
    _checks                     _slots              _gang.finish
    _gang.modules               _gang.quiet         _gang.absent
    _gang.descriptors           _gang.mappings      _gang.call          _gang.line
    _gang.main                  _gang.surroundings
    _gang.loop                  _gang.deferred      _gang.output        _gang.peers
    _gang.tensors               _gang.libc          _notebook.reach     _gang.handlers
    _gang.stacks                _gang.trackers
    _notebook.options           _notebook.apps      _gang.frameworks    _gang.sets
    _gang.modes
    _gang.schedules             _gang.gradients
    _notebook                   _notebook.syntax    _notebook.shown
    _gang                       _map                contexts            errors
    _gang.saving
    _torch                      _gang.streams
    _gang.sockets               _gang.environment
"""
"""Imports run downwards only: a module imports those of the lines below its own."""

ROOT = pathlib.Path(rankexec.__file__).parent
HERE = pathlib.Path(__file__).parent
SETUP = HERE.parent / "setup.cfg"


def find_modules() -> dict[str, ast.Module]:
    """Return the syntax trees of all modules, by name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["rankexec", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = find_modules()
PUBLIC = [name for name in MODULES if "._" not in name]


# --- names ---


def test_all() -> None:
    """`__all__` is a tuple of names that are there, each once; that it is sorted is ruff's rule."""
    for name in MODULES:
        module = importlib.import_module(name)
        if name in ("rankexec._gang", "rankexec._notebook"):  # their docstrings are all they have
            continue
        assert isinstance(module.__all__, tuple), name
        assert len(module.__all__) == len(set(module.__all__)), name
        assert all(hasattr(module, exported) for exported in module.__all__), name


def test_all_is_complete() -> None:
    """What a public module defines without an underscore is public, and so in `__all__`."""
    missing = {}
    for name in PUBLIC:
        defined = {
            node.name
            for node in MODULES[name].body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
        }
        missing[name] = defined - set(importlib.import_module(name).__all__)
    assert set().union(*missing.values()) == set(), missing


def test_all_of_the_package() -> None:
    """What `rankexec` has and no underscore is public; modules are found by their own names."""
    public = {
        key
        for key, value in vars(rankexec).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(rankexec.__all__)


def test_every_error_is_at_the_top() -> None:
    """What can come out of a future can be caught by its name in `rankexec`."""
    errors = importlib.import_module("rankexec.errors")
    raised = {name for name in errors.__all__ if name != "RemoteTraceback"}  # only ever a cause
    assert raised <= set(rankexec.__all__)


# --- layers ---


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield the modules of ours that a module imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankexec"):
            assert node.level == 0
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def find_layers() -> dict[str, int]:
    """Return the line of `LAYERS` in which each module stands."""
    return {
        name if name == "rankexec" else f"rankexec.{name}": number
        for number, line in enumerate(LAYERS.strip().splitlines())
        for name in line.split()
    }


def test_layers_are_complete() -> None:
    """Every module has its place in `LAYERS`."""
    assert set(find_layers()) == set(MODULES)
    assert len(find_layers()) == len(LAYERS.split())


def test_imports_run_downwards() -> None:
    """And so there are no cycles."""
    layers = find_layers()
    upwards = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        for other in imports_of(tree)
        if layers[other] <= layers[name]
    ]
    assert upwards == []


@pytest.mark.parametrize("what", ["import rankexec", "rankexec.RankedExecutor(2).shutdown()"])
def test_what_is_loaded(tmp_path, what) -> None:
    """Neither importing rankexec nor making an executor loads what only some of its users need."""
    heavy = ["torch", "numpy", "IPython", "ipykernel", "ray", "sklearn", "pandas"]
    code = f"import sys, rankexec; {what}; print([n for n in {heavy} if n in sys.modules])"
    done = run_python(["-c", code], tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_what_waits_for_an_executor(tmp_path) -> None:
    """What only gangs need is imported when an executor is made, while its launcher gets ready."""
    heavy = ["multiprocess", "dill", "cloudpickle", "psutil", "loky", "rankexec._gang.run"]
    loaded = f"print([n for n in {heavy} if n in sys.modules])"
    make = "rankexec.RankedExecutor(2).shutdown()"
    code = f"import sys, rankexec; {loaded}; {make}; {loaded}"
    done = run_python(["-c", code], tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.stdout, done.stderr) == (f"[]\n{heavy}\n", "")


def test_it_is_typed() -> None:
    """The marker that tells type checkers so is installed."""
    assert (ROOT / "py.typed").exists()


# --- what is written ---


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions and methods."""
    return (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's lines without those of its docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def test_size_of_modules() -> None:
    """None has more than 250 lines."""
    sizes = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.rglob("*.py")}
    assert {path: size for path, size in sizes.items() if size > 250} == {}


def test_size_of_functions() -> None:
    """None has more than 40 lines without its docstring."""
    sizes = {
        f"{name}.{node.name}": length(node)
        for name, tree in MODULES.items()
        for node in functions_of(tree)
    }
    assert {name: size for name, size in sizes.items() if size > 40} == {}


def public_parts(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield public functions, classes, and methods of public classes."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    todo = list(tree.body)
    for node in todo:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                todo.extend(node.body)
        elif isinstance(node, ast.If):
            todo.extend(node.body)


def test_docstrings() -> None:
    """Every module says what it is for; so does all that is public in a public one."""
    without = [name for name, tree in MODULES.items() if not ast.get_docstring(tree)]
    without += [
        f"{name}.{node.name}"
        for name in PUBLIC
        for node in public_parts(MODULES[name])
        if not ast.get_docstring(node)
    ]
    assert without == []


def test_annotations() -> None:
    """Every function, public or not, has the types of its arguments and of its result."""
    without = []
    for name, tree in MODULES.items():
        for node in functions_of(tree):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
            bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                without.append(f"{name}.{node.name}")
    assert without == []


SUPPRESSION = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?P<rule>:?\s*[\w\d,\s]*|\[[\w\d,-]+\])")
REASONED = re.compile(
    r"#\s(?:noqa:\s[A-Z]+\d+(?:,\s?[A-Z]+\d+)*|type:\signore\[[a-z-]+(?:,\s?[a-z-]+)*\])\s\s#\s\w"
)


@pytest.mark.parametrize("folder", [ROOT, pathlib.Path(__file__).parent], ids=["package", "tests"])
def test_suppressions(folder) -> None:
    """What silences a checker names the rule, and after it the reason."""
    without = [
        f"{os.path.relpath(path, folder)}:{number}: {line.strip()}"
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if path.name != pathlib.Path(__file__).name
        and SUPPRESSION.search(line)
        and not REASONED.search(line)
    ]
    assert without == []


# --- what it stands on ---


@pytest.mark.skipif(not SETUP.exists(), reason="the tests are not in a checkout")
def test_lower_bounds() -> None:
    """Those that users see are those that `tox -e oldest` installs: each, and no others."""
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    extras = config["options.extras_require"]
    wanted = [config["options"]["install_requires"], *(extras[name] for name in extras)]
    bounds = [line.strip() for part in wanted for line in part.splitlines() if line.strip()]
    lines = (HERE / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert pinned == [bound.replace(">=", "==") for bound in bounds]
