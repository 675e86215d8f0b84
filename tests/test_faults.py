"""What becomes of a gang when a rank raises, or when something cannot travel. See `errors`."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from typing import Any

import faulty_ranks
import pytest
import ranked_functions
from faulty_ranks import Faulty, after_mark_of, make, marked, one_does, throw
from helpers import Marks

from rankexec import NotShippable, RankDied, RankedExecutor, RankRaised
from rankexec._gang import outcomes
from rankexec._gang.call import Died, Raised

WORLD = 2
on_each_rank = pytest.mark.parametrize("rank", [0, WORLD - 1], ids=["rank 0", "last rank"])


def check_usable(executor: RankedExecutor) -> None:
    """After a failure the caller is as before, and the next gang works."""
    assert "RANK" not in os.environ
    again = executor.options(gather=True, ctx=None, timeout=60, imports="")
    assert again.submit(ranked_functions.rank).result() == list(range(WORLD))


def check_named(future: Any, rank: int, caller_rank: int | None) -> None:
    """The error says which rank failed, where, and what the others came to."""
    error = future.exception()
    assert isinstance(error.rank_outcomes[rank], Raised)
    assert error.rank_outcomes[rank].rank == rank
    assert error.rank_outcomes[1 - rank] is None  # ended before it reported
    pid = future.ranks[rank].pid
    assert (pid == os.getpid()) == (rank == caller_rank)
    where = f"rank {rank} of {WORLD}, pid {pid} on {socket.gethostname()}"
    if sys.version_info >= (3, 11):
        assert where in error.__notes__
    if rank == caller_rank:
        assert error.__cause__ is None
    else:
        assert "Traceback" in str(error.__cause__)
        assert "in throw" in str(error.__cause__)
        if sys.version_info < (3, 11):  # no notes there
            assert where in str(error.__cause__)


@on_each_rank
def test_raise(make_executor, caller_rank, rank):
    """The future raises the rank's own exception; the others, who hang, are ended."""
    executor = make_executor()
    future = executor.submit(one_does, rank, partial(throw, ValueError("a", 1)))
    assert type(future.exception()) is ValueError
    assert future.exception().args == ("a", 1)
    check_named(future, rank, caller_rank)
    check_usable(executor)


def test_the_callers_own_exception_is_the_same_object():
    """What the caller's rank raises is not copied, and keeps its own `__cause__`."""
    error, cause = ValueError(), KeyError()
    error.__cause__ = cause
    with RankedExecutor(WORLD) as executor:
        assert executor.submit(one_does, 0, partial(throw, error)).exception() is error
    assert error.__cause__ is cause


@pytest.mark.parametrize("kind", [faulty_ranks.Refusing, faulty_ranks.Frozen])
def test_the_callers_own_exception_refuses_attributes(kind):
    """What we set on it does not become the failure."""
    with RankedExecutor(WORLD) as executor:
        error = executor.submit(one_does, 0, partial(faulty_ranks.throw_new, kind)).exception()
    assert type(error) is kind
    assert isinstance(error.rank_outcomes[0], Raised)


@on_each_rank
def test_raise_what_refuses_attributes(make_executor, caller_rank, rank):
    """The same from any rank."""
    raises = partial(faulty_ranks.throw_new, faulty_ranks.Refusing)
    future = make_executor().submit(one_does, rank, raises)
    assert type(future.exception()) is faulty_ranks.Refusing
    check_named(future, rank, caller_rank)


@on_each_rank
def test_raise_what_is_false(make_executor, rank):
    """An exception with a length of 0 is one nevertheless; the context is told, too."""
    executor = make_executor(ctx=faulty_ranks.Insists())
    future = executor.submit(one_does, rank, partial(faulty_ranks.throw_new, faulty_ranks.Empty))
    assert type(future.exception()) is faulty_ranks.Empty
    with pytest.raises(faulty_ranks.Empty):
        future.result()


@on_each_rank
def test_raise_what_cannot_be_pickled(make_executor, caller_rank, rank):
    """From a child comes RankRaised, with type, text and traceback; from the caller itself."""
    executor = make_executor()
    error = executor.submit(one_does, rank, faulty_ranks.throw_unpicklable).exception()
    if rank == caller_rank:
        assert type(error) is faulty_ranks.Unpicklable
    else:
        assert type(error) is RankRaised
        assert (error.rank, error.text) == (rank, "it holds a generator")
        assert error.type_name == "faulty_ranks.Unpicklable"
        assert "throw_unpicklable" in error.traceback_text
    check_usable(executor)


@on_each_rank
def test_raise_with_other_init_arguments(make_executor, rank):
    """An exception whose `__init__` does not take its `args` arrives whole."""
    executor = make_executor()
    future = executor.submit(one_does, rank, faulty_ranks.throw_other_arguments)
    error = future.exception()
    assert type(error) is faulty_ranks.OtherArguments
    assert (str(error), error.code, error.reason) == ("no luck (5)", 5, "no luck")
    check_usable(executor)


@pytest.mark.parametrize(
    "action", [faulty_ranks.throw_local_class, faulty_ranks.throw_class_of_local_module]
)
@on_each_rank
def test_raise_a_class_of_the_child_only(make_executor, caller_rank, rank, action):
    """A class that the caller does not have becomes RankRaised."""
    executor = make_executor()
    error = executor.submit(one_does, rank, action).exception()
    sys.modules.pop("only_here", None)
    if rank == caller_rank:
        assert type(error).__name__ == "LocalError"
    else:
        assert type(error) is RankRaised
        assert error.rank == rank
        assert "LocalError" in error.type_name
        assert error.text.startswith("only here")
        assert action.__name__ in error.traceback_text
    check_usable(executor)


@on_each_rank
def test_sys_exit(make_executor, rank):
    """`sys.exit(3)` is an outcome: nothing exits but the gang."""
    executor = make_executor()
    error = executor.submit(one_does, rank, partial(sys.exit, 3)).exception()
    assert type(error) is SystemExit
    assert error.code == 3
    check_usable(executor)


def test_keyboard_interrupt_in_the_callers_rank_comes_out_of_submit():
    """Whoever presses Ctrl-C means the caller, not a future."""
    with RankedExecutor(WORLD) as executor:
        with pytest.raises(KeyboardInterrupt):
            executor.submit(one_does, 0, partial(throw, KeyboardInterrupt()))
        check_usable(executor)


@on_each_rank
def test_return_what_cannot_be_pickled(make_executor, caller_rank, rank):
    """Asked for: NotShippable naming the rank, or the object itself from the caller's rank."""
    executor = make_executor(gather=True)
    future = executor.submit(one_does, rank, faulty_ranks.CannotBePickled, int)
    if rank == caller_rank:
        assert type(future.result()[rank]) is faulty_ranks.CannotBePickled
    else:
        assert type(future.exception()) is NotShippable
        assert f"the result of rank {rank}" in future.exception().what
    check_usable(executor)


def test_return_what_cannot_be_pickled_and_nobody_asked_for(make_executor):
    """Without gather, another rank's result is nobody's business."""
    executor = make_executor()
    assert executor.submit(one_does, 1, faulty_ranks.CannotBePickled, int).result() == 0
    check_usable(executor)


@pytest.mark.parametrize("how", ["position", "name", "variable"])
def test_argument_that_cannot_be_pickled(make_executor, tmp_path, how):
    """NotShippable names the argument or the variable, and no rank was started."""
    marks, bad = Marks(tmp_path), faulty_ranks.CannotBePickled()

    def uses_variable(directory):
        return marked(directory), bad

    executor = make_executor()
    future, name = {
        "position": lambda: (executor.submit(one_does, 0, bad), "argument 1 of one_does()"),
        "name": lambda: (executor.submit(one_does, 0, action=bad), "argument 'action' of one_does"),
        "variable": lambda: (executor.submit(uses_variable, str(marks)), "the variable 'bad'"),
    }[how]()
    assert type(future.exception()) is NotShippable
    assert name in future.exception().what
    assert "it will not be pickled" in str(future.exception())
    assert [info.pid for info in future.ranks] == [None] * len(future.ranks)
    assert marks.names() == []
    check_usable(executor)


@on_each_rank
def test_result_whose_unpickling_raises_in_the_caller(make_executor, caller_rank, rank):
    """The future raises what unpickling raised; the caller's own result is never pickled."""
    executor = make_executor(gather=True)
    future = executor.submit(one_does, rank, partial(make, faulty_ranks.RaisesWhenUnpickled), int)
    if rank == caller_rank:
        assert type(future.result()[rank]) is faulty_ranks.RaisesWhenUnpickled
    else:
        assert type(future.exception()) is ZeroDivisionError
        if sys.version_info >= (3, 11):
            assert f"what rank {rank} had returned" in future.exception().__notes__[0]
    check_usable(executor)


def test_argument_whose_unpickling_raises_in_the_rank(make_executor):
    """It is a failure of that rank."""
    executor = make_executor()
    error = executor.submit(ranked_functions.returning, faulty_ranks.RaisesWhenUnpickled())
    assert type(error.exception()) is ZeroDivisionError
    check_usable(executor)


def test_imports_that_raise(make_executor):
    """So are import statements that do not work."""
    executor = make_executor(imports="import no_such_module_of_rankexec")
    assert type(executor.submit(ranked_functions.rank).exception()) is ModuleNotFoundError
    check_usable(executor)


@pytest.mark.parametrize("where", [("entering",), ("leaving",), ("entering", "leaving")], ids=str)
@on_each_rank
def test_context_raises(make_executor, rank, where):
    """A context that raises fails the gang; one that was not entered is not left."""
    executor = make_executor(ctx=Faulty(rank, *where))
    error = executor.submit(ranked_functions.rank).exception()
    assert type(error) is ValueError
    assert str(error) == f"{where[0]} on rank {rank}"
    check_usable(executor)


@on_each_rank
def test_function_and_context_raise(make_executor, rank):
    """The function's exception is the first failure, also if leaving the context raises too."""
    executor = make_executor(ctx=Faulty(rank, "leaving"))
    error = executor.submit(one_does, rank, partial(throw, KeyError("function"))).exception()
    assert type(error) is KeyError
    check_usable(executor)


@on_each_rank
def test_lost_connection_loses_to_a_later_exception(make_executor, tmp_path, rank):
    """A rank that lost its connection reports first, and yet the other's exception is the cause."""
    executor = make_executor(ctx=faulty_ranks.MarksLeaving(str(tmp_path)))
    first = partial(throw, ConnectionResetError())
    later = partial(after_mark_of, rank, str(tmp_path), partial(throw, ValueError("cause")))
    error = executor.submit(one_does, rank, first, later).exception()
    assert type(error) is ValueError
    assert isinstance(error.rank_outcomes[rank], Raised)
    assert error.rank_outcomes[rank].lost_connection
    check_usable(executor)


def test_lost_connection_loses_to_a_later_death(make_executor, tmp_path):
    """So it does to a death."""
    executor = make_executor(ctx=faulty_ranks.MarksLeaving(str(tmp_path)))
    first = partial(throw, ConnectionResetError())
    later = partial(after_mark_of, 0, str(tmp_path), partial(os._exit, 7))
    error = executor.submit(one_does, 0, first, later).exception()
    assert type(error) is RankDied
    assert isinstance(error.rank_outcomes[1], Died)
    check_usable(executor)


@on_each_rank
def test_lost_connection_alone_is_the_cause(make_executor, monkeypatch, rank):
    """With no other failure it is what the gang failed of, though the other rank hangs."""
    monkeypatch.setattr(outcomes, "LATE_SECONDS", 0.5)
    executor = make_executor()
    error = executor.submit(one_does, rank, partial(throw, BrokenPipeError("gone"))).exception()
    assert type(error) is BrokenPipeError
    check_usable(executor)


@on_each_rank
def test_earliest_failure_wins(make_executor, tmp_path, rank):
    """Of two exceptions the earlier is raised, and the other is among the outcomes."""
    executor = make_executor(ctx=faulty_ranks.MarksLeaving(str(tmp_path)))
    first = partial(throw, ValueError("first"))
    later = partial(after_mark_of, rank, str(tmp_path), partial(throw, KeyError("second")))
    error = executor.submit(one_does, rank, first, later).exception()
    assert type(error) is ValueError
    check_usable(executor)


def test_the_remote_traceback_begins_with_the_users_code(make_executor):
    """Ours is around it in every rank, and tells nobody anything."""
    error = make_executor().submit(one_does, 1, partial(throw, ValueError("told"))).exception()
    text = str(error.__cause__)
    assert "in one_does" in text
    assert "in perform" not in text
