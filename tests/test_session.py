"""Sessions: many calls on the same ranks, inside a context that is entered once."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import socket
import sys
import threading
import time
import weakref
from functools import partial

import faulty_ranks
import psutil
import pytest
import ranked_functions
from faulty_ranks import one_does
from helpers import (
    own_processes,
    run_script,
    wait_until,
    whole_lines,
    with_children_only,
    with_the_caller,
)

from rankexec import (
    GangTimeout,
    NotShippable,
    RankDied,
    RankedExecutor,
    SessionLost,
    TorchDDPCtx,
)
from rankexec.session import Session

WORLD = 2
LIMIT = 10.0
"""Seconds for what takes two at most."""


@pytest.fixture(autouse=True)
def main_as_before():
    """The caller's rank has the caller's `__main__`: what a test sets there goes."""
    main = vars(sys.modules["__main__"])
    before = set(main)
    yield
    for name in set(main) - before:
        del main[name]


@pytest.fixture
def open_session(make_executor):
    """Open sessions; they are closed after the test."""
    faulty_ranks.Counting.entered = faulty_ranks.Counting.left = 0
    opened = []

    def make(**options) -> Session:
        session = make_executor(WORLD, **{"timeout": 100, **options}).session()
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()


def pids(session: Session) -> list[int]:
    """Return the ranks' process ids."""
    return session.options(gather=True).submit(os.getpid).result()


def is_gone(seen: weakref.ref) -> bool:
    """Return whether nothing holds the object any more."""
    gc.collect()
    return seen() is None


# --- calls ---


def test_calls_run_in_the_same_processes(open_session):
    """A gang's would be new ones; `ranks` names them."""
    session = open_session()
    before = pids(session)
    assert len(set(before)) == WORLD
    assert pids(session) == before == [info.pid for info in session.ranks]
    assert session.submit(ranked_functions.rank).result() == 0


def test_seat_of_every_rank(open_session):
    """They find torchrun's variables, in every call; the caller has them only while it is one."""
    session = open_session(gather=True)
    names = "RANK", "WORLD_SIZE", "LOCAL_RANK"
    for _ in range(2):
        found = session.submit(ranked_functions.variables, *names).result()
        expected = [dict(zip(names, (str(rank), "2", str(rank)), strict=True)) for rank in (0, 1)]
        assert found == expected
        assert "RANK" not in os.environ


@with_the_caller
def test_the_callers_rank_is_the_calling_thread(open_session):
    """It gets its own objects, in whatever thread it is."""
    session, seen = open_session(), []
    for thread in range(2):
        calling = threading.Thread(
            target=session.submit, args=(faulty_ranks.append_to, seen, thread)
        )
        calling.start()
        calling.join()
    assert seen == [0, 1]


@with_children_only
def test_calls_run_in_order(open_session):
    """`submit` returns at once, and one call follows the other."""
    session = open_session()
    futures = [session.submit(ranked_functions.returning, number) for number in range(5)]
    assert [future.result() for future in futures] == list(range(5))


def test_map(open_session):
    """One call for each item."""
    session = open_session()
    assert list(session.map(ranked_functions.returning, range(4))) == [0, 1, 2, 3]
    assert list(session.map(ranked_functions.returning, range(4), buffersize=2)) == [0, 1, 2, 3]


def test_options(open_session):
    """What concerns one call can be another; what the ranks were started with cannot."""
    session = open_session()
    gathering = session.options(gather=sum, timeout=50)
    assert gathering.submit(ranked_functions.rank).result() == 1
    with pytest.raises(TypeError, match=r"a session's options are by_value, .*; got 'world_size'"):
        session.options(world_size=3)
    with pytest.raises(TypeError, match="gather takes"):
        session.options(gather="all")


def test_output_of_each_call(open_session, capfd):
    """It is shown in the caller, with its rank; of a call that wants less, less."""
    session = open_session()
    session.submit(print, "one").result()
    session.options(output="caller").submit(print, "two").result()
    session.options(output=[1]).submit(print, "three").result()
    lines = whole_lines(capfd.readouterr().out)
    assert [line for line in lines if "[rank 1]" in line] == ["[rank 1] one", "[rank 1] three"]


def test_what_cannot_be_shipped(open_session):
    """It is the future's, nothing was run, and the session goes on."""
    session = open_session()
    before = pids(session)
    future = session.submit(ranked_functions.returning, (item for item in ()))
    assert isinstance(future.exception(), NotShippable)
    assert pids(session) == before


def test_result_that_cannot_travel(open_session):
    """The ranks have done their work: nothing is broken off, the context is not left."""
    session = open_session(gather=True, ctx=faulty_ranks.Counting)
    future = session.submit(faulty_ranks.generator_on, 1)
    assert isinstance(future.exception(), NotShippable)
    assert session.submit(faulty_ranks.Counting.read).result() == ["entered 1"] * WORLD


# --- namespaces ---


def test_push_and_pull(open_session):
    """Every rank has what was pushed, and changes its own."""
    session = open_session()
    session.push(pushed=[1])
    session.run_cell("import os; pushed.append(int(os.environ['RANK']))")
    assert session.pull("pushed", rank=1) == [1, 1]
    assert session.pull("pushed", rank=None) == [[1, 0], [1, 1]]


def test_pull_what_is_not_there(open_session):
    """An error that says where; the session goes on."""
    session = open_session()
    before = pids(session)
    with pytest.raises(NameError, match="rank 1 has no 'never_set'"):
        session.pull("never_set", rank=1)
    assert pids(session) == before


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((1,), TypeError, "name takes a string, got 1"),
        (("x", "1"), TypeError, "rank takes an int from 0 to 1, or None, got '1'"),
        (("x", True), TypeError, "rank takes an int"),
        (("x", 2), ValueError, "rank takes 0 to 1, or None, got 2"),
        (("x", -1), ValueError, "rank takes 0 to 1, or None, got -1"),
    ],
)
@with_children_only
def test_pull_takes(open_session, arguments, error, match):
    """Wrong arguments are named."""
    with pytest.raises(error, match=match):
        open_session().pull(*arguments)


@with_children_only
def test_run_cell(open_session):
    """The value of the last expression comes back; what a cell sets, the next one finds."""
    session = open_session()
    assert session.run_cell("a = 20\nb = 1") is None
    assert session.run_cell("def f():\n    return a + b\nf()") == 21
    assert session.options(gather=True).run_cell("import os; os.environ['RANK']") == ["0", "1"]
    with pytest.raises(SyntaxError):
        session.run_cell("a b")
    with pytest.raises(TypeError, match="source takes a string, got 1"):
        session.run_cell(1)


@with_children_only
def test_traceback_of_a_cell(open_session):
    """It shows the cell's own line."""
    with pytest.raises(ZeroDivisionError) as info:
        open_session().run_cell("a = 0\nb = 1 / a")
    assert "b = 1 / a" in str(info.value.__cause__)


NAMES = """\
from rankexec import RankedExecutor

executor = RankedExecutor(2, caller_rank={caller_rank}, gather=True)
counter, shared = 10, [0]

def count():
    global counter
    counter += 1
    return counter

def look():
    return counter, shared

def set_up():
    global made_there
    made_there = object()
    return id(made_there) if __name__ != "x" else 0

def same():
    return id(made_there)

with executor.session() as session:
"""


@pytest.mark.parametrize("caller_rank", [0, None])
def test_ranks_keep_their_names(tmp_path, caller_rank):
    """What a function has changed is there in the next call, on every rank."""
    body = """\
    print([session.submit(count).result() for _ in range(3)])
    print(session.submit(look).result())
    print(session.submit(set_up).result() == session.submit(same).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out.splitlines() == [
        "[[11, 11], [12, 12], [13, 13]]",
        "[(13, [0]), (13, [0])]",
        "True",
    ]


@pytest.mark.parametrize("caller_rank", [0, None])
def test_names_that_the_caller_binds_anew(tmp_path, caller_rank):
    """They travel again; what is changed in place does not, unless a copy is pushed."""
    body = """\
    session.submit(count).result()
    counter = 100
    print(session.submit(count).result())
    shared.append(1)
    print([found[1] for found in session.submit(look).result()])
    shared.append(2)
    session.push(shared=list(shared))
    print([found[1] for found in session.submit(look).result()])
    count = lambda: counter + 1000
    print(session.submit(count).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    # `shared` had not travelled before it was changed the first time.
    assert out.splitlines() == [
        "[101, 101]",
        "[[0, 1], [0, 1]]",
        "[[0, 1, 2], [0, 1, 2]]",
        "[1101, 1101]",
    ]


def test_name_that_takes_a_deleted_ones_place(tmp_path):
    """What a call binds is the ranks' own, also where it has the value that stood before it."""
    body = """\
    first, second = [1], [2]

    def swap():
        global first, second
        value = first
        del first
        value.append(int(__import__("os").environ["RANK"]))
        second = value

    session.submit(swap).result()
    print(session.submit(lambda: second).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=0) + body)
    assert out == "[[1, 0], [1, 1]]\n"


def test_ranks_names_are_found_by_functions(tmp_path):
    """A function reads what only its rank has."""
    body = """\
    session.run_cell("only_there = 5")
    print(session.submit(lambda: only_there).result())
"""
    assert run_script(tmp_path, NAMES.format(caller_rank=None) + body) == "[5, 5]\n"


@pytest.mark.parametrize("caller_rank", [0, None])
def test_value_that_was_there_before(tmp_path, caller_rank):
    """What the ranks set is theirs, also if the value is what it was, there or in the caller."""
    body = """\
    setting = "x = int(__import__('os').environ['RANK'])"
    x = 0
    session.run_cell(setting)
    print(session.submit(lambda: x).result())
    x = 7
    session.run_cell(setting)
    print(session.submit(lambda: x).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out.splitlines() == ["[0, 1]", "[0, 1]"]


@pytest.mark.parametrize("caller_rank", [0, None])
def test_what_is_set_by_name(tmp_path, caller_rank):
    """No pickler sees in the code of a function that it sets a global variable."""
    body = """\
    def by_name():
        globals()["x"] = [int(__import__("os").environ["RANK"])]

    x = "the caller's"
    session.submit(by_name).result()
    print(session.submit(lambda: x).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out == "[[0], [1]]\n"


def test_what_one_rank_sets(tmp_path):
    """It stays there: the caller's does not travel with a function that reads it on one rank."""
    body = """\
    import os, socket

    def sets():
        global log
        if os.environ["RANK"] == "0":
            log = socket.socket()  # cannot travel

    def uses():
        return log.close() if os.environ["RANK"] == "0" else "log" in globals()

    session.submit(sets).result()
    print(session.submit(uses).result())
"""
    assert run_script(tmp_path, NAMES.format(caller_rank=0) + body) == "[None, False]\n"


READS = {
    "a function": "read = lambda: value",
    "two": "inner = lambda: value\ndef read(): return inner()",
    "each other": "def read(n=1): return other() if n else value\ndef other(): return read(0)",
    "a closure": "def make(f):\n    return lambda: f()\nread = make(lambda: value)",
    "a default": "def read(f=lambda: value): return f()",
    "a keyword's default": "def read(*, f=lambda: value): return f()",
    "an attribute": "def read(): return read.f()\nread.f = lambda: value",
    "functools.wraps": "read = functools.wraps(print)(lambda: value)",
    "a partial": "read = functools.partial(lambda f, g: g(), 1, g=lambda: value)",
    "a method": "class A:\n    def m(self): return value\nread = A().m",
    "a method of a base": "class B:\n    def m(self): return value\nclass A(B): pass\nread = A().m",
    "a static method": "class A:\n    m = staticmethod(lambda: value)\nread = A.m",
    "a class method": "class A:\n    @classmethod\n    def m(cls): return value\nread = A.m",
    "a property": "class A:\n    p = property(lambda self: value)\na = A()\nread = lambda: a.p",
    "an object": "class A:\n    def __call__(self): return value\nread = A()",
    "an object's attribute": "a = types.SimpleNamespace(f=lambda: value)\nread = lambda: a.f()",
    "the body of a class": "def read():\n    class A:\n        got = value\n    return A.got",
}


@pytest.mark.parametrize("caller_rank", [0, None])
def test_what_the_ranks_own_functions_read(tmp_path, caller_rank):
    """It travels, bound anew or for the first time, with what calls a function that they have."""
    body = f"""\
    import functools, types

    for kind, code in {READS!r}.items():
        value = 1
        exec(code)
        first = session.submit(lambda: read()).result()
        value = 2
        print(kind, first, session.submit(lambda: read()).result())

    def early():
        return late if call else None

    call = 0
    session.submit(lambda: early()).result()
    late, call = "defined since", 1
    print(session.submit(lambda: early()).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    expected = [f"{kind} [1, 1] [2, 2]" for kind in READS]
    assert out.splitlines() == [*expected, "['defined since', 'defined since']"]


def test_data_that_the_ranks_own_functions_read(tmp_path):
    """What they have made of it is not overwritten."""
    body = """\
    value, held = 1, []
    read = lambda: (held.append(value), list(held))[1]
    session.submit(lambda: read()).result()
    value = 2
    print(session.submit(lambda: read()).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=None) + body)
    assert out == "[[1, 2], [1, 2]]\n"


@pytest.mark.parametrize("caller_rank", [0, None])
@pytest.mark.parametrize(
    "cell", ["for x in []: pass", "if not __name__: x = 5", "def f():\n    global x\n    x = 5"]
)
def test_names_that_a_cell_may_set(tmp_path, cell, caller_rank):
    """They are the caller's where the cell has not done it."""
    body = f"""\
    x = 1
    session.submit(lambda: x).result()
    x = 2
    session.run_cell({cell!r})
    print(session.submit(lambda: x).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out == "[2, 2]\n"


@pytest.mark.parametrize("caller_rank", [0, None])
@pytest.mark.parametrize(
    "cell",
    [
        "del a, b\nfor i in range(3): x = rank() * 10 + i",
        "for i in range(3): x = [rank() * 10 + i][0] + 0.0",
        "x = 0\nfor i in range(3): x = rank() * 10 + i",
        "exec('x = rank() * 10 + 2')",
    ],
)
def test_names_that_a_cell_sets_by_the_way(tmp_path, cell, caller_rank):
    """The caller has bound them anew before; then they are each rank's own."""
    body = f"""\
    rank = lambda: int(__import__("os").environ["RANK"])
    a = b = x = 1
    session.submit(lambda: (a, b, x, rank())).result()
    x = 0.5
    session.run_cell({cell!r})
    print(session.submit(lambda: x).result() == [2, 12])
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out == "True\n"


@pytest.mark.parametrize("caller_rank", [0, None])
def test_names_that_a_call_would_have_set(tmp_path, caller_rank):
    """It has not begun, as one rank could not unpack it: they are the caller's."""
    body = """\
    import os
    from rankexec._gang.sets import Sets

    def unpacked():
        if os.environ["RANK"] == "1":
            raise ValueError("not here")

    class Packed:
        def __reduce__(self): return unpacked, ()

    def sets(argument):
        globals()["x"] = 5

    x = 1
    session.submit(lambda: x).result()
    x = 2
    certain = frozenset({"x"})
    print(repr(session._submit_setting(Sets(certain, certain), sets, Packed()).exception()))
    print(session.submit(lambda: x).result())
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out.splitlines() == ["ValueError('not here')", "[2, 2]"]


@pytest.mark.parametrize("caller_rank", [0, None])
def test_what_a_cell_deletes_is_gone(tmp_path, caller_rank):
    """Nothing holds it until the end of the cell, which may need its memory."""
    body = """\
    session.run_cell("class Model: pass\\nmodel = Model()")
    cell = "import weakref\\nseen = weakref.ref(model)\\ndel model\\nseen() is None"
    print(session.run_cell(cell))
"""
    out = run_script(tmp_path, NAMES.format(caller_rank=caller_rank) + body)
    assert out == "[True, True]\n"


def test_what_the_caller_deletes_is_gone(open_session):
    """It has travelled; the session does not hold it."""
    session = open_session()
    main = vars(sys.modules["__main__"])
    exec("class Model: pass\nmodel = Model()\ndef reading(): return model", main)
    session.submit(main["reading"]).result()
    seen = weakref.ref(main["model"])
    del main["model"]
    wait_until(partial(is_gone, seen))


CANCELLED = """\
import os, pathlib, time
from rankexec import RankedExecutor
x, found = 5, []
def waits():
    while not os.path.exists("go"): time.sleep(0.01)
with RankedExecutor(2, caller_rank=None).session() as session:
    first = session.submit(waits)
    second = session.submit(lambda: (x, found))
    third = session.submit(lambda: (x + 1, found.append(x)))
    {between}
    cancelled = second.cancel()
    pathlib.Path("go").touch()
    print(cancelled, third.result()[0], session.submit(lambda: (x, found)).result())
"""


@pytest.mark.parametrize(("between", "x"), [("", 5), ("x = 50; session.submit(lambda: x)", 50)])
def test_names_of_a_call_that_was_cancelled(tmp_path, between, x):
    """Later calls, packed when it was to bring them, find them nevertheless, and keep them."""
    out = run_script(tmp_path, CANCELLED.format(between=between))
    assert out == f"True 6 ({x}, [5])\n"


@pytest.mark.parametrize("source", ["if False:\\n    x = 5", "1 / 0\\nx = 5"])
def test_names_that_a_cell_would_have_set(tmp_path, source):
    """They are the ranks' only if they are there."""
    out = run_script(
        tmp_path,
        f"""\
from rankexec import RankedExecutor
x = 1
with RankedExecutor(2, caller_rank=None).session() as session:
    try:
        session.run_cell("{source}")
    except ZeroDivisionError:
        pass
    print(session.submit(lambda: x).result())
""",
    )
    assert out == "1\n"


# --- the context ---


def test_context_is_entered_once(open_session):
    """And left when the session ends."""
    session = open_session(gather=True, ctx=faulty_ranks.Counting)
    for _ in range(3):
        assert session.submit(faulty_ranks.Counting.read).result() == ["entered 1"] * WORLD
    session.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_context_is_entered_anew_after_a_failure(open_session, rank):
    """In the same processes; it was left on every rank."""
    session = open_session(gather=True, ctx=faulty_ranks.Counting)
    before = pids(session)
    error = session.submit(
        one_does, rank, partial(faulty_ranks.throw, ValueError("no"))
    ).exception()
    assert (type(error), error.args) == (ValueError, ("no",))
    assert session.submit(faulty_ranks.Counting.read).result() == ["entered 2, left 1"] * WORLD
    assert pids(session) == before


def test_context_that_fails(make_executor):
    """What entering raises comes out of `session()`, and nothing is left."""
    with pytest.raises(ValueError, match="not today"):
        make_executor(WORLD, ctx=partial(faulty_ranks.Failing, 1)).session()
    assert own_processes() == []


def test_context_that_fails_to_leave(make_executor):
    """What leaving raises comes out of `close`; the ranks are gone."""
    session = make_executor(WORLD, ctx=partial(faulty_ranks.FailingToLeave, 1)).session()
    with pytest.raises(ValueError, match="stay"):
        session.close()
    assert own_processes() == []
    session.close()


# --- failures ---


@pytest.mark.parametrize(
    "busy", ["hang", "spin", "wait_for_lock", "wait_for_pipe", "swallow_one", "c_call"]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_others_are_broken_off(open_session, rank, busy):
    """Whatever they do, their processes live on, with what they hold."""
    session = open_session()
    session.push(kept=5)
    before = pids(session)
    fails = partial(faulty_ranks.throw, ValueError("no"))
    began = time.monotonic()
    future = session.submit(one_does, rank, fails, getattr(faulty_ranks, busy))
    assert type(future.exception()) is ValueError
    assert time.monotonic() - began < LIMIT
    assert pids(session) == before
    assert session.pull("kept", rank=1) == 5


@pytest.mark.parametrize("caller_rank", [None], ids=["caller_rank=None"])
@pytest.mark.parametrize("busy", ["c_call_with_gil", "stop"])
def test_what_cannot_be_broken_off_is_ended(open_session, busy):
    """The call's own failure comes first; the next call says that the session is lost."""
    session = open_session()
    fails = partial(faulty_ranks.throw, ValueError("no"))
    future = session.submit(one_does, 0, fails, getattr(faulty_ranks, busy))
    assert type(future.exception()) is ValueError
    wait_until(lambda: own_processes() == [])
    with pytest.raises(SessionLost, match=r"rank 1 \(pid \d+\) could not be broken off") as info:
        session.submit(int)
    assert info.value.rank == 1
    session.restart()
    assert session.submit(ranked_functions.rank).result() == 0


@pytest.mark.parametrize("rank", [0, 1])
@with_children_only
def test_rank_that_dies(open_session, rank):
    """RankDied from the call, SessionLost from the next; `restart` starts new ranks."""
    session = open_session()
    before = pids(session)
    session.push(kept=5)
    error = session.submit(one_does, rank, partial(faulty_ranks.exit_at_once, 7)).exception()
    assert isinstance(error, RankDied)
    assert (error.rank, error.exitcode) == (rank, 7)
    with pytest.raises(SessionLost, match=r"rank \d \(pid \d+\) died") as info:
        session.submit(int)
    assert info.value.pid in before
    session.restart()
    assert not set(pids(session)) & set(before)
    with pytest.raises(NameError):
        session.pull("kept")


def is_free(port: int) -> bool:
    """Return whether a port can be bound."""
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("rank", [0, 1])
@with_children_only
def test_a_lost_session_gives_its_port_back(open_session, rank):
    """It is nobody's when the session is closed."""
    session = open_session()
    port = int(session.submit(os.getenv, "MASTER_PORT").result())
    assert not is_free(port)
    dies = partial(faulty_ranks.exit_at_once, 7)
    assert isinstance(session.submit(one_does, rank, dies).exception(), RankDied)
    session.close()
    assert is_free(port)


def test_rank_that_dies_between_calls(open_session):
    """The next call says which, and how."""
    session = open_session()
    victim = pids(session)[1]
    psutil.Process(victim).kill()
    wait_until(session._open.standing._crew.has_lost)  # a call just before: RankDied
    with pytest.raises(SessionLost, match="killed by SIGKILL") as info:
        session.submit(int).result()
    assert (info.value.rank, info.value.pid, info.value.signal_name) == (1, victim, "SIGKILL")
    session.restart()
    assert session.submit(ranked_functions.rank).result() == 0


def test_timeout(open_session):
    """Of a call: stacks, and the session goes on."""
    session = open_session()
    before = pids(session)
    error = session.options(timeout=0.5).submit(faulty_ranks.hang).exception()
    assert isinstance(error, GangTimeout)
    assert sorted(error.stacks) == [0, 1]
    assert all("in hang" in stack for stack in error.stacks.values())
    assert pids(session) == before


@with_children_only
def test_cancel(open_session):
    """A running call is broken off; one that waits does not begin; the rest is run."""
    session = open_session()
    before = pids(session)
    running = session.submit(faulty_ranks.hang)
    waiting = session.submit(faulty_ranks.hang)
    last = session.submit(ranked_functions.returning, 3)
    wait_until(lambda: running.ranks)
    assert waiting.cancel()
    assert running.cancel()
    assert last.result() == 3
    assert running.cancelled()
    assert waiting.cancelled()
    assert pids(session) == before


def test_many_failures(open_session):
    """The tenth failure is like the first."""
    session = open_session(ctx=faulty_ranks.Counting, gather=True)
    before = pids(session)
    for number in range(10):
        fails = partial(faulty_ranks.throw, ValueError(number))
        assert session.submit(one_does, number % 2, fails).exception().args == (number,)
    assert session.submit(faulty_ranks.Counting.read).result() == ["entered 11, left 10"] * WORLD
    assert pids(session) == before


# --- its end ---


def test_after_close(open_session):
    """No more calls; closing once more does nothing."""
    session = open_session()
    session.close()
    session.close()
    assert own_processes() == []
    for call in (partial(session.submit, int), session.restart, partial(session.pull, "x")):
        with pytest.raises(RuntimeError, match="after shutdown"):
            call()


@with_children_only
def test_close_runs_what_is_pending(make_executor):
    """As an executor's shutdown does."""
    with make_executor(WORLD).session() as session:
        futures = [session.submit(ranked_functions.returning, number) for number in range(3)]
    assert [future.result() for future in futures] == [0, 1, 2]


@with_children_only
def test_close_from_a_callback(make_executor):
    """The session's own thread may ask for its end."""
    session = make_executor(WORLD).session()
    future = session.submit(ranked_functions.returning, 1)
    future.add_done_callback(lambda _: session.close())
    assert future.result() == 1
    wait_until(lambda: own_processes() == [])


@with_children_only
def test_shutdown_of_a_session(make_executor):
    """It is an executor: it need not be waited for, and what is pending can be cancelled."""
    session = make_executor(WORLD).session()
    futures = [session.submit(time.sleep, 0.2) for _ in range(5)]
    session.shutdown(wait=False, cancel_futures=True)
    done, _ = concurrent.futures.wait(futures)
    assert sum(future.cancelled() for future in done) >= 3
    wait_until(lambda: own_processes() == [])


def test_executors_shutdown_closes_it(make_executor):
    """With the executor's last process goes the session's."""
    with make_executor(WORLD) as executor:
        session = executor.session()
        session.submit(int)
    assert own_processes() == []
    with pytest.raises(RuntimeError, match="after shutdown"):
        session.submit(int)


def test_session_that_nobody_holds(make_executor):
    """It ends, its thread and its ranks with it."""
    session = make_executor(WORLD, ctx=faulty_ranks.Counting).session()
    session.submit(int)
    del session
    gc.collect()
    wait_until(lambda: own_processes() == [])
    wait_until(lambda: not any(t.name.startswith("rankexec-") for t in threading.enumerate()))


@pytest.mark.parametrize("caller_rank", [0, None])
def test_session_at_interpreter_exit(tmp_path, caller_rank):
    """It is closed as by `close`: the context is left, on every rank."""
    out = run_script(
        tmp_path,
        f"""\
import faulty_ranks
from rankexec import RankedExecutor
executor = RankedExecutor(2, caller_rank={caller_rank}, ctx=faulty_ranks.Saying)
session = executor.session()
future = session.submit(int)
""",
    )
    assert sorted(line.removeprefix("[rank 1] ") for line in whole_lines(out)) == ["left", "left"]


@with_the_caller
def test_caller_is_as_before_between_calls(open_session):
    """Variables, handlers and the working directory are put back after each call."""
    session = open_session()
    session.submit(ranked_functions.rank)
    assert "RANK" not in os.environ
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_session_in_a_rank(make_executor):
    """With a caller's rank it is refused there, as a nested gang is."""
    error = make_executor(1).submit(faulty_ranks.open_session, 0).exception()
    assert isinstance(error, RuntimeError)
    assert "rank 0 of a gang already" in str(error)
    assert make_executor(1).submit(faulty_ranks.open_session, None).result() == 0


def test_device_that_a_session_holds():
    """A gang of the same thread would wait for ever: an error says so."""
    with RankedExecutor(1, devices=[0], ctx=None, launcher=None) as executor:
        with executor.session() as session:
            assert session.submit(ranked_functions.rank).result() == 0
            with pytest.raises(RuntimeError, match=r"held by .* a session that it has opened"):
                executor.submit(int)
        assert executor.submit(ranked_functions.rank).result() == 0


def test_device_of_a_session_that_nobody_holds():
    """It is being given back, and waited for."""
    with RankedExecutor(2, devices=["a", "b"]) as executor:
        executor.session().submit(int)
        assert executor.submit(int).result() == 0


def test_gang_beside_a_session(make_executor):
    """The executor that has opened a session runs gangs as before."""
    with make_executor(WORLD) as executor, executor.session() as session:
        before = pids(session)
        apart = executor.options(gather=True).submit(os.getpid).result()
        assert set(apart[1:]).isdisjoint(before)
        assert pids(session) == before


def test_idle_session_takes_no_cpu(open_session):
    """Neither the caller's thread nor the ranks do anything between calls."""
    session = open_session()
    children = [psutil.Process(pid) for pid in pids(session) if pid != os.getpid()]

    def used() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in children) + time.process_time()

    before = used()
    threading.Event().wait(1.0)
    assert used() - before < 0.1


@with_children_only
def test_session_cannot_travel(open_session):
    """It holds processes of the caller."""
    session = open_session()
    error = session.submit(ranked_functions.returning, session).exception()
    assert isinstance(error, NotShippable)
    assert "a session holds processes of the caller" in str(error)


# --- what was found by using them ---


@with_children_only
def test_a_group_is_joined_anew(open_session):
    """After a failure the caller holds a new store for it; the failed call's is gone."""
    pytest.importorskip("torch")
    session = open_session(ctx=TorchDDPCtx(use_gpu=False))
    before = pids(session)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            session.submit(one_does, 1, partial(faulty_ranks.throw, ValueError("no"))).result()
        assert pids(session) == before


COLLECTIVE = """
import os
import torch.distributed as dist
if os.environ["RANK"] == "{rank}":
    raise ValueError("no")
dist.barrier()
"""
REPLICA = """
import torch
replica = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
replica(torch.ones(1, 1)).sum().backward()
"""


@pytest.mark.parametrize("rank", [0, 1])
@with_children_only
def test_others_are_freed_from_a_collective(open_session, rank):
    """Though a replica keeps the failed rank's group: whoever has connected, and who accepted."""
    pytest.importorskip("torch")
    session = open_session(ctx=TorchDDPCtx(use_gpu=False))
    before = pids(session)
    for _ in range(4):  # which of two ranks connects is chance
        session.run_cell(REPLICA)
        with pytest.raises(ValueError, match="no"):
            session.run_cell(COLLECTIVE.format(rank=rank))
        assert pids(session) == before


@pytest.mark.parametrize("ending", ["executor.shutdown()", "del executor", ""])
def test_what_options_makes_is_closed_too(tmp_path, ending):
    """By its executor, or at the interpreter's exit, though nobody has the session itself."""
    script = f"""\
from rankexec import RankedExecutor

executor = RankedExecutor(2, caller_rank=None)
session = executor.session().options(gather=True)
print(session.submit(len, "ab").result())
{ending}
"""
    assert run_script(tmp_path, script) == "[2, 2]\n"


@with_children_only
def test_close_from_a_callback_while_another_closes(make_executor):
    """Neither waits for the other."""
    session = make_executor(WORLD).session()
    session.submit(time.sleep, 0.3).add_done_callback(lambda _: session.close())
    session.close()
    assert own_processes() == []


class Closing:
    """Closes the caller's session; it is none in the other ranks."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self) -> None:
        """Close it."""
        self.session.close()

    def __reduce__(self):
        return partial, (int,)


@with_the_caller
def test_close_in_its_own_rank(open_session):
    """It is refused, as a nested call is: it would wait for itself."""
    session = open_session()
    error = session.submit(Closing(session)).exception()
    assert isinstance(error, RuntimeError)
    assert "rank 0 of a gang already" in str(error)
    assert session.submit(ranked_functions.rank).result() == 0


def test_names_of_a_call_that_got_no_turn(tmp_path):
    """They travel with the next one."""
    script = """\
import threading
from rankexec import GangTimeout, RankedExecutor

x = 5
begun, over = threading.Event(), threading.Event()

class Waiting:
    def __call__(self): begun.set(); over.wait(60)
    def __reduce__(self): return int, ()

def blocks(waiting):
    if waiting: waiting()

def read():
    return x

with RankedExecutor(2, gather=True) as executor, executor.session() as session:
    thread = threading.Thread(target=executor.submit, args=(blocks, Waiting()))
    thread.start()
    begun.wait(60)
    assert isinstance(session.options(timeout=0.1).submit(read).exception(), GangTimeout)
    over.set()
    thread.join()
    print(session.submit(read).result())
"""
    assert run_script(tmp_path, script) == "[5, 5]\n"


@pytest.mark.parametrize("caller_rank", [0, None])
def test_idle_session_holds_no_arguments(open_session, caller_rank):
    """What the last call was given is the user's alone."""
    session = open_session()
    given = partial(int)
    seen = weakref.ref(given)
    session.submit(callable, given).result()
    del given
    wait_until(partial(is_gone, seen))


@with_children_only
def test_ctrl_c_in_close(open_session):
    """It ends the calls that close would wait for."""
    session = open_session()
    running = session.submit(faulty_ranks.hang)
    wait_until(lambda: running.ranks)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.close()
    timer.join()
    assert running.cancelled()
    assert own_processes() == []


@with_the_caller
def test_end_of_one_session_leaves_the_others_group(make_executor):
    """A session that has made no group in the caller ends none."""
    pytest.importorskip("torch")
    import torch.distributed

    plain = make_executor(WORLD).session()
    with make_executor(WORLD, ctx=TorchDDPCtx(use_gpu=False)).session() as session:
        plain.close()
        assert torch.distributed.is_initialized()
        assert session.submit(ranked_functions.rank).result() == 0
    assert not torch.distributed.is_initialized()
