"""RankedExecutor.map: lazy where the caller is a rank, as the standard library's where it is not.

What is warned of at interpreter exit is in test_executor_exit.
"""

from __future__ import annotations

import gc
import itertools
import time
from concurrent.futures import TimeoutError as FuturesTimeoutError

import pytest
import ranked_functions
from helpers import wait_until, with_children_only, with_the_caller

# --- both modes ---


def test_results_in_order(make_executor) -> None:
    """One result for each item, in the order of the items, up to the end of the shortest."""
    assert list(make_executor(2).map(pow, [3, 4, 5], itertools.count(1))) == [3, 16, 125]


def test_nothing_to_do(make_executor) -> None:
    """No items, no results."""
    executor = make_executor(1)
    assert list(executor.map(int, [])) == []
    assert list(executor.map(int)) == []


@pytest.mark.parametrize("chunksize", [1, 2, 50])
def test_chunksize_is_ignored(make_executor, chunksize) -> None:
    """One item is one gang, whatever chunksize says."""
    executor = make_executor(1, gather=True)
    assert list(executor.map(abs, [-1, -2], chunksize=chunksize)) == [[1], [2]]


def test_items_are_read_at_once(make_executor) -> None:
    """What happens to the list afterwards does not matter."""
    items = [1, 2]
    results = make_executor(1).map(abs, items)
    items.clear()
    assert list(results) == [1, 2]


def test_buffersize_reads_as_needed(make_executor) -> None:
    """With buffersize an endless iterable can be mapped."""
    read = []
    items = (read.append(item) or item for item in itertools.count())
    results = make_executor(1).map(abs, items, buffersize=2)
    assert [next(results), next(results)] == [0, 1]
    assert len(read) <= 4
    results.close()


def test_a_failure_ends_the_iteration(make_executor) -> None:
    """The first failure comes out of the iterator, which is over then."""
    results = make_executor(1).map(divmod, [1, 1, 1], [1, 0, 1])
    assert next(results) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_timeout(make_executor) -> None:
    """A result that is not there in time ends the iteration, and its gang."""
    results = make_executor(1).map(time.sleep, [60, 0], timeout=0.5)
    with pytest.raises(FuturesTimeoutError):
        next(results)
    assert list(results) == []


# --- with a caller_rank: each gang runs when its result is asked for ---


@with_the_caller
def test_runs_when_asked(make_executor) -> None:
    """So a progress bar around the iterator moves."""
    ran = []
    results = make_executor(2).map(ran.append, "abc")
    assert ran == []
    for count, _ in enumerate(results, 1):
        assert ran == list("abc")[:count]


@with_the_caller
def test_break(make_executor) -> None:
    """A loop that is left drops the rest; shutdown does not run it."""
    ran = []
    executor = make_executor(1)
    for _ in executor.map(ran.append, "abc"):
        break
    gc.collect()
    executor.shutdown()
    assert ran == ["a"]


@with_the_caller
@pytest.mark.parametrize("how", ["close", "collect", "exception"])
def test_dropped(make_executor, how) -> None:
    """A started iterator drops the rest when it is closed or collected, or when a gang fails."""
    ran = []

    def run(item: str) -> None:
        ran.append(item)
        if how == "exception" and item == "b":
            raise ValueError(item)

    executor = make_executor(1)
    results = executor.map(run, "abc")
    next(results)
    if how == "close":
        results.close()
    elif how == "collect":
        del results
        gc.collect()
    else:
        with pytest.raises(ValueError, match="b"):
            next(results)
    executor.shutdown()
    assert ran == ["a", "b"][: 1 + (how == "exception")]


@with_the_caller
@pytest.mark.parametrize("started", [False, True])
def test_shutdown_runs_what_is_held(make_executor, started) -> None:
    """A held iterator is finished by shutdown, and gives its results afterwards."""
    ran = []
    executor = make_executor(1)
    results = executor.map(lambda item: ran.append(item) or item, "abc")
    first = [next(results)] if started else []
    executor.shutdown()
    assert ran == list("abc")
    assert first + list(results) == list("abc")


@with_the_caller
def test_shutdown_and_items_without_end(make_executor) -> None:
    """With a buffer size, shutdown runs as many gangs as that holds, as the standard library's."""
    executor = make_executor(1, timeout=60)
    results = executor.map(abs, itertools.count(), buffersize=2)
    assert next(results) == 0
    executor.shutdown()
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


@with_the_caller
def test_shutdown_runs_what_was_never_started(make_executor) -> None:
    """Also if nobody holds the iterator: `map` alone means that the calls are to be made."""
    ran = []
    with make_executor(1) as executor:
        executor.map(ran.append, "ab")
        executor.map(ran.append, "cd")
        gc.collect()
    assert sorted(ran) == list("abcd")


@with_the_caller
@pytest.mark.parametrize("started", [False, True])
def test_shutdown_with_cancel_futures(make_executor, started) -> None:
    """It drops what has not run."""
    ran = []
    executor = make_executor(1)
    results = executor.map(ran.append, "abc")
    if started:
        next(results)
    executor.shutdown(cancel_futures=True)
    assert ran == ["a"] * started


@with_the_caller
def test_shutdown_after_the_timeout(make_executor) -> None:
    """What cannot be there in time any more does not keep the executor from being shut down."""
    executor = make_executor(1)
    results = executor.map(abs, [1, 2], timeout=0.01)
    time.sleep(0.05)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    del results


@with_the_caller
def test_shutdown_goes_on_after_a_failure(make_executor) -> None:
    """A map that fails does not keep the next one from running."""
    ran = []
    executor = make_executor(1)
    one, other = executor.map(divmod, [1, 1], [0, 1]), executor.map(ran.append, "ab")
    executor.shutdown()
    assert ran == ["a", "b"]
    assert list(other) == [None, None]
    with pytest.raises(ZeroDivisionError):
        next(one)


@with_the_caller
def test_two_at_once(make_executor) -> None:
    """Iterators of one executor do not disturb each other."""
    executor = make_executor(1)
    one, other = executor.map(abs, [1, 2]), executor.options(gather=True).map(abs, [3, 4])
    assert [next(one), next(other), next(one), next(other)] == [1, [3], 2, [4]]


@with_the_caller
def test_the_rest_has_the_rest_of_the_time(make_executor) -> None:
    """A result that is asked for too late is not computed any more."""
    ran = []
    results = make_executor(1).map(ran.append, "ab", timeout=0.05)
    time.sleep(0.1)
    with pytest.raises(FuturesTimeoutError):
        next(results)
    assert ran == []


# --- without: submitted at once ---


@with_children_only
def test_submitted_at_once(make_executor, tmp_path) -> None:
    """Gangs run although nobody asks for their results."""
    executor = make_executor(1)
    executor.map(ranked_functions.meet, [str(tmp_path)] * 2, "ab")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)


@with_children_only
def test_break_cancels(make_executor, tmp_path) -> None:
    """A loop that is left cancels the rest, also what runs."""
    executor = make_executor(1, max_gangs=1)
    others = ["a", "never", "never"]
    for _ in executor.map(ranked_functions.meet, [str(tmp_path)] * 3, "abc", others):
        break
    executor.shutdown()
    assert not (tmp_path / "c").exists()
