"""What people define in notebook cells, on ranks: the table, and the errors that name what is not.

The table is in `notebook_objects`. docs/shipping.md shows it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import traceback
import types
from collections import deque
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
from helpers import run_python, run_script
from notebook_kinds import cells, table
from notebook_objects import GROUPS

from rankexec import NotShippable, RankedExecutor
from rankexec._gang import reducers
from rankexec._gang.call import Call
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import pack, unpack

HERE = Path(__file__).parent
KINDS = [kind for kinds in GROUPS.values() for kind in kinds]
has_numpy = importlib.util.find_spec("numpy")
has_kernel = importlib.util.find_spec("ipykernel")  # with the client that it needs itself


# --- the table ---


def run_all(way: str, folder: Path, launcher: str) -> dict[str, object]:
    """Run all kinds as one program; return what each came to."""
    start_method = "spawn" if launcher == "spawn" else "forkserver"
    parts = cells(GROUPS, start_method, in_kernel=way == "notebook")
    if way == "notebook":
        arguments, stdin = [str(HERE / "run_in_kernel.py")], json.dumps(parts)
    elif way == "stdin":
        arguments, stdin = ["-"], "\n".join(parts)
    else:
        (folder / "script.py").write_text("\n".join(parts), encoding="utf-8")
        arguments, stdin = ["script.py"], None
    done = run_python(arguments, folder, stdin=stdin, timeout=170)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(
    scope="module", params=["script", "stdin", pytest.param("notebook", marks=pytest.mark.notebook)]
)
def way(request) -> str:
    """How the program is run."""
    if request.param == "notebook" and not has_kernel:
        pytest.skip("needs ipykernel")
    return request.param


@pytest.fixture(scope="module")
def found(way, request, tmp_path_factory) -> dict[str, object]:
    """What each kind came to, run in each way."""
    return run_all(way, tmp_path_factory.mktemp("kinds"), request.config.getoption("--launcher"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind(kind, way, found):
    """True on both ranks, or what the table says."""
    if missing := kind.lacks(in_kernel=way == "notebook"):
        pytest.skip(f"needs {missing}")
    seen = found[kind.name]
    if kind.refused:
        assert str(seen).startswith("NotShippable: ")
        assert [part for part in kind.refused.split("|") if part not in seen] == [], seen
    else:
        assert seen == [True, not kind.differs]


def test_the_table_is_in_the_docs():
    """It is shown as the tests have it, and it is long."""
    page = (HERE.parent / "docs" / "shipping.md").read_text(encoding="utf-8")
    assert table(GROUPS).strip() in page
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 100


# --- errors that name what does not travel ---


class Holder:
    """An object with attributes."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slotted:
    """One without a __dict__."""

    __slots__ = ("content", "other")

    def __init__(self, content: object) -> None:
        self.content = content


def generator():
    """Return what does not travel."""
    return (x for x in ())


def function(**names: object):
    """Return a function of `__main__` that uses some global variables and nothing else."""
    code = compile(f"def helper(): return {', '.join(names)}", "cell", "exec")
    namespace = {"__name__": "__main__", **names}
    exec(code, namespace)
    return namespace["helper"]


def use(*_: object, **__: object) -> None:
    """Take anything."""


def with_default(*defaults: object, **named: object):
    """Return a function of `__main__` with defaults."""
    made = types.FunctionType(use.__code__, {}, "use", defaults)
    made.__kwdefaults__ = named
    return made


def call(fn=use, *args, **kwargs) -> Call:
    """Return a call."""
    return Call(fn, args, kwargs)


def made_in_a_class() -> type:
    """Return a class with what does not travel in it."""

    class Made:
        shared: object = {"a": generator()}

    return Made


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (call(use, 1, generator()), "argument 1 of use()"),
        (call(use, x=generator()), "argument 'x' of use()"),
        (call(use, [0, {"k": (generator(),)}]), "argument 0 of use() at [1]['k'][0]"),
        (call(use, Holder(a=Holder(b=generator()))), "argument 0 of use() at .a.b"),
        (call(use, Slotted(generator())), "argument 0 of use() at .content"),
        (call(use, {generator(): 1}), "argument 0 of use() (a key)"),
        (call(use, {generator()}), "argument 0 of use() (an element)"),
        (call(use, deque([1, generator()])), "argument 0 of use() at [1]"),
        (call(use, Holder(a=1).__init__), None),
        (call(partial(use, generator())), "the function partial() at .args[0]"),
        (call(partial(use, k=generator())), "the function partial() at .keywords['k']"),
        (call(function(g=generator())), "the variable 'g', used by helper()"),
        (call(function(h=Holder(x=[generator()]))), "h.x[0], used by helper()"),
        (call(function(f=function(inner=generator()))), "the variable 'inner', used by helper()"),
        (call(use, function(g=generator())), "the variable 'g', used by helper()"),
        (call(with_default(g=generator())), "the function use() in its __kwdefaults__['g']"),
        (call(with_default(generator())), "the function use() in its __defaults__[0]"),
        (call(made_in_a_class()), "Made() at .shared['a']"),
        (Call(use, (), {}, needed={"n": [generator()]}), "'n', named in need at [0]"),
        (Call(use, (), {}, ctx=Holder(g=generator())), "ctx at .g"),
    ],
    ids=str,
)
def test_the_path(call, what):
    """The argument or variable, and every step from there."""
    if what is None:
        pack_call(call).close()
        return
    with pytest.raises(NotShippable) as caught:
        pack_call(call)
    assert caught.value.what.endswith(f"{what} (a generator)")
    assert "cannot be shipped to another process: a generator runs in its own" in str(caught.value)


def test_a_variable_of_an_enclosing_function():
    """It has a name too."""
    running = [generator()]

    def helper():
        return running

    def work():
        return helper()

    with pytest.raises(NotShippable) as caught:
        pack_call(call(work))
    user = helper.__qualname__
    assert caught.value.what == f"running[0], used by {user}() (a generator)"


def test_what_the_users_own_code_says():
    """The text of an exception from a `__reduce__`, at the object that it is of."""

    class Shy:
        def __reduce__(self):
            raise RuntimeError("not today")

    with pytest.raises(
        NotShippable, match=r"argument 0 of use\(\) at \[2\] \(a .*Shy\) .*not today"
    ):
        pack_call(call(use, [0, 1, Shy()]))


class Raising:
    """An object whose `__reduce__` raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(3), ValueError(), OSError("gone"), StopIteration()])
def test_whatever_pickling_raises(error):
    """It is an object that cannot travel: there as a part of a call, here as one of a result."""
    with RankedExecutor(2, caller_rank=None) as executor:
        there = executor.submit(use, [Raising(error)]).exception()
        back = executor.submit(Raising, error).exception()
    assert type(there) is type(back) is NotShippable
    said = str(error) if isinstance(error, OSError) else repr(error)
    assert (
        f"argument 0 of use() at [0] (a Raising) cannot be shipped to another process: {said}"
        in (str(there))
    )
    assert f"(a Raising) cannot be shipped to another process: {said}" in str(back)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_what_is_no_fault_of_the_object(kind):
    """It comes out as it is."""
    with pytest.raises(kind):
        pack_call(call(use, Raising(kind())))


def test_without_end():
    """Recursion that does not end is an error like any other, and not the end of the process."""

    class Endless:
        def __reduce__(self):
            return Endless, (Endless(),)

    class Lost:
        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __reduce__(self):
            return self.nowhere

    for endless in (Endless(), Lost()):
        with pytest.raises(NotShippable, match="nested too deeply") as caught:
            pack_call(call(use, endless))
        assert len(str(caught.value)) < 500


def test_the_error_is_short():
    """Nothing is shown but what the user has to know: no chain of pickle's own errors."""
    with RankedExecutor(2) as executor:
        with open("/dev/null") as lines:
            future = executor.submit(use, Holder(lines=lines))
        error = future.exception()
        assert [info.pid for info in future.ranks] == [None] * len(future.ranks)
    assert type(error) is NotShippable
    assert error.__traceback__ is None
    shown = "".join(traceback.format_exception(error))
    assert error.__cause__ is None
    assert "argument 0 of use() at .lines (a TextIOWrapper)" in shown
    assert "pass its path, and open it inside the function" in shown


def test_large_data_before_it():
    """The search does not depend on what comes before."""
    with pytest.raises(NotShippable, match=r"at \[1\] \(a generator\)"):
        pack_call(call(use, [list(range(100_000)), generator()]))


def before_it() -> dict[str, object]:
    """Return what may stand before what does not travel: pickle asks for each in its own way."""
    cycle: list[object] = [1]
    cycle.append(cycle)
    found: dict[str, object] = {"bytes": bytearray(b"x"), "cycle": cycle, "class": made_in_a_cell()}
    found["instance"], found["memory"] = found["class"](), memoryview(b"x")
    if has_numpy:
        import numpy as np

        found |= {"array": np.zeros(3), "large array": np.zeros(1 << 20)}
        found |= {"apart": np.zeros((4, 4))[:, ::2], "state": np.random.default_rng()}
    if importlib.util.find_spec("torch"):
        import torch

        found |= {"tensor": torch.zeros(3), "module": torch.nn.Linear(2, 2)}
    return found


def made_in_a_cell() -> type:
    """Return a class that travels by value."""
    return type("Made", (), {"__module__": "__main__", "get": lambda self: self})


@pytest.mark.parametrize("dill", [False, True], ids=["", "dill"])
def test_what_stands_before_it(tmp_path, dill):
    """Nothing of that is named, also when dill is imported, which changes the library's pickler."""
    source = f"""
import socket, sys
{"import dill" if dill else ""}
sys.path.append({str(HERE)!r})
from test_shipping import NotShippable, before_it, call, pack_call, use

with socket.socket() as cause:
    for name, before in before_it().items():
        try:
            pack_call(call(use, [before, [cause]]))
        except NotShippable as error:
            if error.what != "argument 0 of use() at [1][0] (a socket)":
                print(name, error)
"""
    assert run_script(tmp_path, source) == ""


def test_what_stands_before_a_map_of_a_file(tmp_path):
    """It goes in a way of ours."""
    numpy = pytest.importorskip("numpy")
    mapped = numpy.memmap(tmp_path / "file", mode="w+", shape=3)
    with pytest.raises(NotShippable, match=r"at \[1\] \(a generator\)"):
        pack_call(call(use, [mapped, generator()]))


# --- fast where all is well ---


def test_the_reducer_is_chosen_once_for_each_type(monkeypatch):
    """Instances cost a look-up, numbers in lists not even that."""
    asked = []
    choose = reducers.choose
    monkeypatch.setattr(reducers, "choose", lambda cls: asked.append(cls) or choose(cls))
    pack([Holder(number=number) for number in range(100)] + [list(range(1000))]).close()
    assert asked.count(Holder) == 1
    assert int not in asked
    assert list not in asked


# --- code by value ---


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An imported module, whose file then says something else."""
    path = tmp_path / "code_by_value.py"
    path.write_text(
        "import threading\nfactor = 3\nlock = threading.Lock()\n"
        "def times(x):\n    return x * factor\n"
        "def set_factor(x):\n    global factor\n    factor = x\n"
        "class Thing:\n    def get(self):\n        return times(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("code_by_value")
    sys.modules.pop("code_by_value")


def test_by_value(module):
    """Its functions, classes and itself travel as the caller has them."""
    Path(module.__file__).write_text("raise ImportError('a rank has imported it')\n")
    with RankedExecutor(1, caller_rank=None, by_value=[module]) as executor:
        assert executor.submit(module.times, 2).result() == 6
        thing = executor.submit(module.Thing).result()
        assert type(thing) is module.Thing
        assert executor.submit(lambda: module.Thing().get()).result() == 3
        assert executor.options(by_value=()).submit(module.times, 2).exception() is not None
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_a_module_that_was_loaded_by_its_path(tmp_path, monkeypatch):
    """No rank finds it; the error says what sends its code along."""
    path = tmp_path / "loaded_by_path.py"
    path.write_text("def times(x):\n    return x * 2\n")
    spec = importlib.util.spec_from_file_location("loaded_by_path", path)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loaded_by_path", loaded)
    spec.loader.exec_module(loaded)
    with RankedExecutor(1, caller_rank=None) as executor:
        with pytest.raises(ModuleNotFoundError, match=r"'loaded_by_path'.*by_value=\[") as caught:
            executor.submit(loaded.times, 2).result()
        assert caught.value.name == "loaded_by_path"
        assert executor.options(by_value=[loaded]).submit(loaded.times, 2).result() == 4


def test_the_namespace_of_a_module_by_value(module):
    """What its functions change, others see, through the module too."""

    def change():
        module.set_factor(10)
        return module.factor, module.times(1), module.Thing().get()

    with RankedExecutor(1, caller_rank=None, by_value=[module]) as executor:
        assert executor.submit(change).result() == (10, 10, 10)
    assert module.factor == 3


def test_a_package_by_value(tmp_path, monkeypatch):
    """Its modules are part of it; functions may import from it as they do here."""
    package = tmp_path / "package_by_value"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text("rate = 4\n")
    (package / "inner.py").write_text(
        "def imports():\n    from .constants import rate\n    return rate, here()\n"
        "def here():\n    return 'the caller'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = importlib.import_module("package_by_value.inner")
    with RankedExecutor(
        1, caller_rank=None, by_value=[sys.modules["package_by_value"]]
    ) as executor:
        (package / "inner.py").write_text("raise ImportError('a rank has imported it')\n")
        assert executor.submit(inner.imports).result() == (4, "the caller")
    for name in [name for name in sys.modules if name.startswith("package_by_value")]:
        del sys.modules[name]


def test_by_value_is_over_after_a_failure(module):
    """And does not end what the user has registered."""
    cloudpickle.register_pickle_by_value(module)
    with pytest.raises(NotShippable):
        pack_call(call(use, generator()), [module])
    assert cloudpickle.list_registry_pickle_by_value() == {"code_by_value"}
    cloudpickle.unregister_pickle_by_value(module)
    with pytest.raises(NotShippable):
        pack_call(call(use, generator()), [module])
    assert cloudpickle.list_registry_pickle_by_value() == set()


# --- the rest of the contract ---


def test_a_class_goes_once():
    """What arrives twice is one class, filled anew."""

    class Base:
        def __init_subclass__(cls) -> None:
            cls.made = True

    class Child(Base):
        pass

    first, second = unpack(pack(Child)), unpack(pack(Child))
    assert first is second is Child


def test_members_of_enums_come_back(tmp_path):
    """As themselves, from gangs and from sessions, whatever their values are equal to."""
    source = """
import enum
from rankexec import RankedExecutor

class Base(enum.Enum):
    def __new__(cls, value, label):
        member = object.__new__(cls)
        member._value_, member.label = value, label
        return member

class Labeled(Base):
    A = 1, "a"
    B = [2], "b"

class Other(enum.Enum):
    UNIQUE = object()
    SAME = UNIQUE

class Bits(enum.Flag):
    A = 1
    B = 2

members = [*Labeled, Other.UNIQUE, Other.SAME, Bits.A, Bits.A | Bits.B]

def back(sent):
    return [*sent, *(one is other for one, other in zip(sent, members))]

for caller_rank in (None, 0):
    with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
        with executor.session() as session:
            for ranks in (executor, session, session):
                for came in ranks.submit(back, members).result():
                    assert came[6:] == [True] * 6, came
                    assert all(one is other for one, other in zip(came, members)), came
"""
    assert run_script(tmp_path, source) == ""


def test_needed_globals_are_not_copied_back(tmp_path):
    """What children change in them stays there; what the caller's rank changes, the caller has."""
    source = """
from rankexec import RankedExecutor

seen, model = [], {"steps": 0}

def work(model):
    import __main__
    __main__.seen.append(1)
    model["steps"] += 1

for caller_rank in (None, 0):
    with RankedExecutor(2, caller_rank=caller_rank, need="seen") as executor:
        executor.submit(work, model).result()
    print(seen, model)
"""
    assert run_script(tmp_path, source) == "[] {'steps': 0}\n[1] {'steps': 1}\n"


def test_no_name_of_ours_in_the_table():
    """Each row reads by itself in the docs."""
    for kind in KINDS:
        assert not re.search(r"\|", kind.name + kind.arrives)
