"""Time limits: a gang that takes too long is ended, and its error shows what its ranks did."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from functools import partial

import faulty_ranks
import pytest
from faulty_ranks import marked, one_does
from helpers import Marks, wait_until
from test_faults import WORLD, check_usable

from rankexec import GangTimeout, RankedExecutor


def timed_out(executor, marks, fn, *args):
    """Return the error of a gang that was given time enough for all ranks to leave their marks."""
    for seconds in (0.5, 1, 2, 4, 8, 16, 32):
        marks.clear()
        began = time.time()
        future = executor.options(timeout=seconds).submit(fn, *args)
        error = future.exception()
        # The stacks are taken when the time is over, and a mark may still come after that.
        if len(marks.names()) >= WORLD and marks.last() < began + seconds * 0.75:
            assert type(error) is GangTimeout
            assert error.timeout == seconds
            assert set(error.stacks) == set(range(WORLD))
            wait_until(lambda: not marks.living())
            return error
    raise AssertionError("the ranks never came that far")


@pytest.mark.parametrize("seconds", [30 * 86400, 1e300, float("inf")])
def test_timeout_that_never_comes(make_executor, seconds):
    """More than the kernel takes at once is no failure."""
    check_usable(make_executor(WORLD))
    assert make_executor(WORLD, timeout=seconds).submit(int).result() == 0


@pytest.mark.parametrize(
    "action",
    [
        faulty_ranks.hang,
        faulty_ranks.spin,
        faulty_ranks.wait_for_lock,
        faulty_ranks.wait_for_pipe,
    ],
    ids=lambda action: action.__name__,
)
def test_timeout(make_executor, tmp_path, action):
    """GangTimeout has every rank's Python stack, with the function in it and in its text."""
    executor = make_executor()
    error = timed_out(executor, Marks(tmp_path), marked, str(tmp_path), action)
    for stack in error.stacks.values():
        assert f"in {action.__name__}" in stack
    assert f"in {action.__name__}" in str(error)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, concurrent.futures.TimeoutError)
    check_usable(executor)


@pytest.mark.parametrize(
    "action", [faulty_ranks.c_call, faulty_ranks.c_call_with_gil], ids=lambda a: a.__name__
)
@pytest.mark.parametrize("caller_rank", [None], ids=["caller_rank=None"])
def test_timeout_in_c(make_executor, tmp_path, action):
    """Children in C show the Python function that called it, with the GIL or without."""
    executor = make_executor()
    error = timed_out(executor, Marks(tmp_path), marked, str(tmp_path), action)
    for stack in error.stacks.values():
        assert f"in {action.__name__}" in stack
    check_usable(executor)


def test_timeout_of_a_stopped_rank(make_executor, tmp_path):
    """A rank that runs no handler has no stack, and delays nobody."""
    executor = make_executor()
    both = partial(one_does, 1, faulty_ranks.stop)
    error = timed_out(executor, Marks(tmp_path), marked, str(tmp_path), both)
    assert error.stacks[1] == ""
    assert "in hang" in error.stacks[0]
    check_usable(executor)


@pytest.mark.parametrize("action", [faulty_ranks.hang, faulty_ranks.stop], ids=["hangs", "stopped"])
def test_timeout_before_the_ranks_are_ready(make_executor, tmp_path, action):
    """A rank that hangs while it unpacks the call keeps the others from beginning, no longer."""
    began = Marks(tmp_path / "began")
    executor = make_executor(timeout=2)
    bad = faulty_ranks.WhenUnpickled(1, action)
    future = executor.submit(faulty_ranks.mark_with, str(began), bad)
    assert type(future.exception()) is GangTimeout
    assert began.names() == []
    check_usable(executor)


def test_timeout_while_contexts_are_entered(make_executor, tmp_path):
    """The context counts."""
    marks = Marks(tmp_path)
    executor = make_executor(ctx=faulty_ranks.HangsEntering(str(marks)))
    error = timed_out(executor, marks, int)
    for stack in error.stacks.values():
        assert "in hang" in stack
    check_usable(executor)


def test_timeout_while_contexts_are_left(make_executor, tmp_path):
    """So does leaving it, when `fn` has returned."""
    marks = Marks(tmp_path)
    executor = make_executor(ctx=faulty_ranks.HangsLeaving(1, str(marks)))
    error = timed_out(executor, marks, int)
    assert "in hang" in error.stacks[1]
    check_usable(executor)


@pytest.mark.parametrize("action", [faulty_ranks.spin], ids=lambda action: action.__name__)
def test_timeout_with_the_callers_rank_in_a_thread(tmp_path, action):
    """A thread that is not the main one is broken out of Python code."""
    marks, found = Marks(tmp_path), []

    with RankedExecutor(WORLD) as executor:

        def submit():
            found.append(timed_out(executor, marks, marked, str(tmp_path), action))

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()
        for stack in found[0].stacks.values():
            assert f"in {action.__name__}" in stack
        check_usable(executor)


def test_timeout_while_waiting_for_the_turn(tmp_path):
    """A gang that does not get its turn in its time says whom it waited for."""
    marks = Marks(tmp_path)
    with RankedExecutor(WORLD) as executor:
        # The holder: it ends when the test releases the lock.
        faulty_ranks.TEST.acquire()
        action = partial(marked, str(tmp_path), partial(one_does, 0, faulty_ranks.wait_for_test))
        thread = threading.Thread(target=executor.submit, args=(one_does, 0, action, int))
        thread.start()
        try:
            marks.wait_for(1)
            began = time.monotonic()
            future = executor.options(timeout=0.2).submit(int)
            assert type(future.exception()) is GangTimeout
            assert "one_does in thread" in str(future.exception())
            assert time.monotonic() - began < 5
        finally:
            faulty_ranks.TEST.release()
            thread.join()
        check_usable(executor)
