"""What is rebuilt in its own way: exceptions without their `__init__`, locks, weak references."""

from __future__ import annotations

import contextvars
import errno
import functools
import importlib
import io
import json
import queue
import subprocess
import sys
import threading
import types
import weakref
from dataclasses import dataclass

import pytest
from helpers import wait_until

from rankexec._gang import reducers
from rankexec._gang.picklers import caller_classes
from rankexec._gang.wire import pack, pack_result, unpack


def round_trip(error):
    """Pack as a rank does and unpack as the caller does."""
    arrived = unpack(pack_result(error, caller_classes(), inline=True))
    assert type(arrived) is type(error)
    assert arrived is not error
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    return arrived


class KeywordOnly(Exception):
    """Its __init__ takes keywords only."""

    def __init__(self, *, path: str, line: int = 0) -> None:
        super().__init__(f"{path}:{line}")
        self.path = path
        self.line = line


class MoreThanStored(Exception):
    """Its __init__ needs two arguments and stores one."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"no {path}: {reason}")
        self.path = path


class Plain(ValueError):
    """Without an __init__ of its own."""


class OwnOSError(OSError):
    """An OSError with other arguments."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "not there", path)
        self.path = path


class OwnSystemExit(SystemExit):
    """A SystemExit with other arguments."""

    def __init__(self, *, status: int) -> None:
        super().__init__(status)


class OwnKeyError(KeyError):
    """A builtin's subclass, of a class with an __init__."""

    def __init__(self, key: str, mapping: dict[str, int]) -> None:
        super().__init__(key)
        self.known = sorted(mapping)


class Grandchild(OwnKeyError):
    """It inherits that __init__."""


class OwnUnicodeError(UnicodeDecodeError):
    """A builtin with five arguments."""

    def __init__(self, data: bytes) -> None:
        super().__init__("utf-8", data, 0, 1, "bad")


class OwnStop(StopIteration):
    """A builtin that keeps its first argument under a name."""

    def __init__(self, *, result: int) -> None:
        super().__init__(result)


@dataclass
class DataclassError(Exception):
    """Its __init__ is generated and stores nothing in `args`."""

    code: int
    text: str = ""


class WithSetstate(Exception):
    """It has a __setstate__ of its own."""

    def __init__(self, *, secret: str) -> None:
        super().__init__("with state")
        self.secret = secret

    def __setstate__(self, state):
        self.secret = state["secret"].upper()


class WithReduce(Exception):
    """It says itself how it is rebuilt."""

    def __init__(self, code: int, *, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.way = "__init__"

    def __reduce__(self):
        return _rebuild_with_reduce, (self.code, str(self))


class WithUsualReduce(Exception):
    """It does so in the usual way: by the arguments of its __init__."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{where}: {code}")
        self.code = code

    def __reduce__(self):
        return type(self), (self.code, str(self).partition(":")[0])


def _rebuild_with_reduce(code: int, text: str) -> WithReduce:
    error = WithReduce(code, text=text)
    error.way = "__reduce__"
    return error


def test_keyword_only_init():
    """Attributes arrive, and __init__ is not called."""
    arrived = round_trip(KeywordOnly(path="a.py", line=3))
    assert (arrived.path, arrived.line) == ("a.py", 3)


def test_init_with_more_arguments_than_stored():
    """So do those of a class that calls `super().__init__` with less."""
    assert round_trip(MoreThanStored("x", "lost")).path == "x"


def test_no_init_of_its_own():
    """Nothing needs to be done."""
    error = Plain("a", 1)
    error.extra = [1]
    assert round_trip(error).extra == [1]


def test_oserror_keeps_errno():
    """errno, strerror and filename are set by OSError's own __init__."""
    arrived = round_trip(OwnOSError("a.txt"))
    assert (arrived.errno, arrived.strerror) == (errno.ENOENT, "not there")
    assert (arrived.filename, arrived.path) == ("a.txt", "a.txt")


def test_systemexit_keeps_its_code():
    """`sys.exit(3)` in a rank has the code 3 in the caller, a subclass's too."""
    assert round_trip(OwnSystemExit(status=3)).code == 3
    assert round_trip(SystemExit(4)).code == 4


def test_other_builtins():
    """Each keeps what its own __init__ sets."""
    assert round_trip(OwnKeyError("x", {"b": 1, "a": 2})).known == ["a", "b"]
    assert round_trip(Grandchild("x", {"c": 1})).known == ["c"]
    assert round_trip(OwnUnicodeError(b"\xff")).reason == "bad"
    assert round_trip(OwnStop(result=5)).value == 5


def test_dataclass():
    """Fields arrive, though `args` has none of them."""
    assert round_trip(DataclassError(5, text="five")).code == 5
    assert round_trip(DataclassError(code=5, text="five")).text == "five"


def test_own_setstate_is_called():
    """A class that has one decides itself what its state becomes."""
    assert round_trip(WithSetstate(secret="word")).secret == "WORD"


def test_own_reduce_is_respected():
    """A class that brings its own way is left to it."""
    arrived = round_trip(WithReduce(5, text="five"))
    assert (arrived.code, arrived.way) == (5, "__reduce__")
    assert round_trip(WithUsualReduce(5, "here")).code == 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with 3.11")
def test_notes_are_kept():
    """They are part of an exception's state."""
    error = KeywordOnly(path="a.py")
    error.add_note("seen on Monday")
    assert round_trip(error).__notes__ == ["seen on Monday"]


def test_exceptions_of_libraries():
    """CalledProcessError has its arguments in `args`, JSONDecodeError a __reduce__."""
    error = round_trip(subprocess.CalledProcessError(2, ["ls"], output=b"out"))
    assert (error.returncode, error.cmd, error.output) == (2, ["ls"], b"out")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert round_trip(caught.value).pos == 1


def raised_by(run) -> BaseException:
    """Return what a function raises."""
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError


class OwnName(AttributeError):
    """It has something else by the name of a field."""

    @property
    def name(self):
        """Be read only."""
        return "own"


def test_fields_of_the_standard_exceptions():
    """What they have beside `args` comes along; an object only if it goes by name or is plain."""
    missing = round_trip(raised_by(lambda: json.nowhere))
    assert (missing.name, missing.obj) == ("nowhere", json)
    missing = round_trip(raised_by(lambda: "text".nowhere))
    assert (missing.name, missing.obj) == ("nowhere", "text")
    missing = round_trip(raised_by(lambda: io.BytesIO().nowhere))
    assert (missing.name, missing.obj) == ("nowhere", None)
    assert round_trip(raised_by(lambda: nowhere)).name == "nowhere"  # noqa: F821  # that is the point
    imported = round_trip(raised_by(lambda: importlib.import_module("nowhere.at_all")))
    assert (imported.name, imported.msg) == ("nowhere", "No module named 'nowhere'")
    assert round_trip(OwnName("text")).name == "own"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with 3.11")
def test_groups_of_an_own_class():
    """Whatever its `__new__` takes, and its `__init__`."""

    class Coded(ExceptionGroup):  # noqa: F821  # from 3.11 on
        def __new__(cls, text, errors, code):
            made = super().__new__(cls, text, errors)
            made.code = code
            return made

        def __init__(self, *_):
            super().__init__(self.message, self.exceptions)

    class Fixed(ExceptionGroup):  # noqa: F821  # from 3.11 on
        def __new__(cls, errors):
            return super().__new__(cls, "fixed", errors)

    unpack(pack_result([Coded, Fixed], frozenset(), inline=True))
    inner = [ValueError(1), MoreThanStored("x", "lost")]
    for group in (Coded("some", inner, 7), Fixed(inner)):
        arrived = unpack(pack_result(group, caller_classes(), inline=True))
        assert type(arrived) is type(group)
        assert arrived.message == group.message
        assert [str(error) for error in arrived.exceptions] == ["1", "no x: lost"]
        assert vars(arrived) == vars(group)


def test_a_class_made_in_a_function():
    """A class that only exists here arrives as itself when it was sent before."""

    class Local(Exception):
        def __init__(self, *, code):
            super().__init__(f"code {code}")
            self.code = code

    unpack(pack_result(Local, frozenset(), inline=True))  # as the caller's call would send it
    assert round_trip(Local(code=7)).code == 7


@pytest.mark.parametrize("cls", [int, list, dict, ValueError, Plain, type])
def test_the_rest_is_cloudpickles(cls):
    """No reducer where none is needed: the handler is chosen once for each type."""
    assert reducers.choose(cls) is None


# --- what the table of notebook objects does not show: see test_shipping ---


def travelled(value):
    """Pack as the caller does and unpack as a rank does."""
    packed = pack(value)
    try:
        return unpack(packed)
    finally:
        packed.close()


class Target:
    """Can be referred to weakly."""

    def method(self):
        """Be a bound method."""


def gone(_):
    """Be called when a target is gone."""


def test_weak_references_that_are_dead():
    """They are dead there, too."""
    target = Target()
    dead = [weakref.ref(target), weakref.WeakMethod(target.method)]
    del target
    assert [reference() for reference in travelled(dead)] == [None, None]


def test_the_callback_of_a_weak_reference():
    """It belongs to the reference."""
    target = Target()
    arrived, reference = travelled([target, weakref.ref(target, gone)])
    assert reference() is arrived
    assert reference.__callback__ is gone


def test_semaphores():
    """A bounded one knows how it began; the other has the count of the moment."""
    bounded, plain = threading.BoundedSemaphore(2), threading.Semaphore(2)
    with bounded, plain:
        arrived_bounded, arrived_plain = travelled([bounded, plain])
    assert (arrived_bounded._value, arrived_plain._value) == (2, 1)


def test_a_condition_that_somebody_waits_for():
    """Nobody waits there, and a queue's three conditions have one lock."""
    waited = queue.Queue()
    thread = threading.Thread(target=waited.get)
    thread.start()
    wait_until(lambda: waited.not_empty._waiters)
    arrived = travelled(waited)
    waited.put(1)
    thread.join()
    assert not arrived.not_empty._waiters
    assert arrived.not_empty._lock is arrived.not_full._lock is arrived.mutex


def test_threads():
    """One that has not started is a plain object, one that has is refused."""
    thread = threading.Thread(target=gone, args=(1,))
    assert not travelled(thread).is_alive()
    thread.start()
    thread.join()
    with pytest.raises(TypeError, match="a Thread runs in its own process only"):
        pack(thread)


def test_a_thread_local_with_an_init():
    """`__init__` is not called again: its arguments are nowhere."""

    class Local(threading.local):
        def __init__(self, first):
            self.value = [first]

    assert travelled(Local(3)).value == [3]


def test_an_importable_lru_cache():
    """It goes by name, with what it has cached in that process."""
    assert travelled(cached) is cached


@functools.lru_cache
def cached(x):
    """Be cached."""
    return x


def test_a_context_variable_without_a_value():
    """It has none there."""
    arrived = travelled(contextvars.ContextVar("unset"))
    assert arrived.name == "unset"
    with pytest.raises(LookupError):
        arrived.get()


def test_what_typing_extensions_makes():
    """On Pythons that do not have it, as on those that do."""
    extensions = pytest.importorskip("typing_extensions")
    variable = extensions.TypeVar("variable", default=int)
    alias = extensions.TypeAliasType("alias", list[variable], type_params=(variable,))
    arrived, alone = travelled([alias, variable])
    assert arrived is not alias
    assert (arrived.__name__, arrived.__module__) == ("alias", __name__)
    assert arrived.__value__ == list[alone]
    assert arrived.__type_params__ == (alone,)
    assert alone.__default__ is int


def test_an_empty_cell():
    """It stays empty; one that holds None is not empty."""
    empty, none = travelled([types.CellType(), types.CellType(None)])
    assert none.cell_contents is None
    with pytest.raises(ValueError, match="empty"):
        _ = empty.cell_contents


def test_files_without_a_descriptor(tmp_path):
    """A stream that is made in Python is an object; a closed file is not."""

    class Tee(io.TextIOBase):
        def __init__(self):
            self.lines = []

        def write(self, text):
            self.lines.append(text)

    tee = Tee()
    tee.write("a")
    assert travelled(tee).lines == ["a"]
    with (tmp_path / "file").open("w") as closed:
        pass
    with pytest.raises(TypeError, match="it is a closed file"):
        pack(closed)
