"""What `submit` returns: waited for, called back, awaited and cancelled as any future."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    InvalidStateError,
    as_completed,
    wait,
)
from concurrent.futures import TimeoutError as FuturesTimeoutError
from functools import partial

import multiprocess
import psutil
import pytest
import ranked_functions
from helpers import is_running, own_processes, wait_until, with_children_only, with_the_caller

from rankexec import RankedFuture
from rankexec._gang.call import RankInfo
from rankexec._gang.run import Job
from rankexec._shared import Shared


@pytest.fixture
def running(make_executor, tmp_path):
    """A gang of two that would run for ten minutes, and the pids of its ranks."""
    executor = make_executor(2, caller_rank=None, max_gangs=1)
    future = executor.submit(ranked_functions.announce, str(tmp_path), then_sleep=600)
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() for file in files), "both ranks run")
    yield executor, future, [int(file.read_text()) for file in files]
    future.cancel()


# --- wait, as_completed ---


def test_wait(make_executor) -> None:
    """`wait` sees gangs that succeed and gangs that fail."""
    executor = make_executor(1)
    futures = [executor.submit(divmod, 1, divisor) for divisor in (1, 0)]
    assert wait(futures, timeout=60) == (set(futures), set())


def test_as_completed(make_executor) -> None:
    """`as_completed` gives each once."""
    executor = make_executor(2)
    futures = [executor.submit(ranked_functions.returning, value) for value in range(3)]
    assert {future.result() for future in as_completed(futures, timeout=60)} == {0, 1, 2}


@with_children_only
def test_waiting_no_longer_than_asked(running) -> None:
    """Time limits of the one who waits do not touch the gang."""
    _, future, _ = running
    with pytest.raises(FuturesTimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(FuturesTimeoutError):
        future.exception(timeout=0.01)
    assert future.running()


@with_children_only
def test_cancelled_ones_are_seen_at_once(running) -> None:
    """`wait` and `as_completed` count a cancelled gang although another is still running."""
    executor, _, _ = running
    future = executor.submit(int)
    waiting = threading.Thread(target=wait, args=[[future]])
    waiting.start()
    assert future.cancel()
    waiting.join(30)
    assert not waiting.is_alive()
    assert list(as_completed([future], timeout=0)) == [future]
    assert wait([future], timeout=0).done == {future}


@with_children_only
def test_cancelled_by_shutdown_are_seen_at_once(running) -> None:
    """The same for those that `cancel_futures` cancels."""
    executor, future, _ = running
    pending = [executor.submit(int) for _ in range(2)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert wait([future, *pending], timeout=60, return_when=FIRST_COMPLETED).done == set(pending)
    assert future.running()


# --- callbacks ---


def test_callbacks(make_executor) -> None:
    """Each is called once, with the future, whenever it was added."""
    called = []
    future = make_executor(1).submit(time.sleep, 0.05)
    future.add_done_callback(called.append)
    future.result()
    future.add_done_callback(called.append)
    wait_until(lambda: len(called) == 2)
    assert called == [future] * 2


def test_a_callback_that_raises(make_executor, caplog) -> None:
    """It is logged, and changes nothing."""
    future = make_executor(1).submit(int)
    future.add_done_callback(lambda _future: 1 / 0)
    assert future.result() == 0
    wait_until(lambda: "ZeroDivisionError" in caplog.text)


@with_children_only
def test_a_callback_that_submits(make_executor) -> None:
    """The next gang can be submitted from the callback of the last, in either mode."""
    executor = make_executor(1, max_gangs=1)
    results = []

    def submit_more(_future: object) -> None:
        results.append(executor.options(caller_rank=0).submit(int, 1).result())
        executor.submit(int, 2).add_done_callback(lambda future: results.append(future.result()))

    executor.submit(int).add_done_callback(submit_more)
    wait_until(lambda: results == [1, 2])


# --- cancel ---


def test_cancel_a_finished_gang(make_executor) -> None:
    """It cannot be cancelled any more."""
    future = make_executor(1).submit(ranked_functions.returning, 5)
    assert future.result() == 5
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 5


@with_children_only
def test_cancel_a_pending_gang(running, tmp_path) -> None:
    """It never runs, and its callbacks are called once."""
    executor, first, _ = running
    called = []
    future = executor.submit(ranked_functions.meet, str(tmp_path), "never")
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
    assert called == [future]
    assert first.running()
    first.cancel()
    executor.shutdown()
    assert not (tmp_path / "never").exists()
    assert called == [future]


@with_children_only
def test_cancel_a_running_gang(running) -> None:
    """It is cancelled at once, and its ranks end."""
    _, future, pids = running
    called = []
    future.add_done_callback(called.append)
    assert future.running()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
    assert called == [future]
    with pytest.raises(CancelledError):
        future.result(timeout=0)
    wait_until(lambda: not any(map(is_running, pids)), "its ranks have ended")
    assert future.cancel()
    assert called == [future]


@with_children_only
def test_after_a_cancelled_gang(running) -> None:
    """The next gang gets its place."""
    executor, future, _ = running
    future.cancel()
    assert executor.submit(ranked_functions.returning, 5).result() == 5


@with_children_only
def test_cancel_while_it_starts(make_executor) -> None:
    """At whatever moment a gang is cancelled, nothing of it is left."""
    for delay in range(8):
        with make_executor(2) as executor:
            future = executor.submit(time.sleep, 600)
            time.sleep(delay * 0.02)
            assert future.cancel()
        assert own_processes() == []


@with_children_only
def test_two_who_cancel(running) -> None:
    """Threads that cancel at the same time all succeed; the callback is called once."""
    _, future, _ = running
    called, results = [], []
    future.add_done_callback(called.append)
    threads = [threading.Thread(target=lambda: results.append(future.cancel())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results, called) == ([True] * 8, [future])


def test_setting_a_result_from_outside(make_executor) -> None:
    """A finished future stays as it is."""
    future = make_executor(1).submit(ranked_functions.returning, 5)
    future.result()
    with pytest.raises(InvalidStateError):
        future.set_result(6)


# --- asyncio ---


def test_wrap_future(make_executor) -> None:
    """Coroutines can await gangs."""
    executor = make_executor(2)

    async def main() -> list[int]:
        futures = [executor.submit(ranked_functions.returning, value) for value in range(2)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    assert asyncio.run(main()) == [0, 1]


def test_run_in_executor(make_executor) -> None:
    """The executor can be asyncio's."""
    executor = make_executor(2)

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(executor, ranked_functions.rank)

    assert asyncio.run(main()) == 0


def test_an_exception_in_asyncio(make_executor) -> None:
    """A rank's exception comes out of await."""
    executor = make_executor(1)

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(executor, divmod, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


@with_children_only
def test_asyncio_cancels(running) -> None:
    """A task that gives up ends the gang."""
    _, future, pids = running

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.05)

    asyncio.run(main())
    wait_until(future.cancelled)
    wait_until(lambda: not any(map(is_running, pids)), "its ranks have ended")


# --- ranks ---


def test_ranks(make_executor, caller_rank) -> None:
    """The future knows of each rank who it was and when it did what."""
    executor = make_executor(2, gather=True)
    future = executor.submit(os.getpid)
    pids = future.result()
    executor.shutdown()
    assert [info.rank for info in future.ranks] == [0, 1]
    assert [info.pid for info in future.ranks] == pids
    assert {info.host for info in future.ranks} == {socket.gethostname()}
    children = [info for info in future.ranks if info.rank != caller_rank]
    for info in future.ranks:
        phases = [info.started, info.ready, info.context_entered, info.fn_entered]
        phases += [info.fn_left, info.context_left]
        if info in children:
            phases.append(info.reaped)
            assert info.exitcode == 0
            assert 2**20 < info.peak_memory < 2**34
        assert None not in phases
        assert phases == sorted(phases)
        assert phases[-1] <= time.monotonic()
    entered = min(info.context_entered for info in future.ranks)
    assert all(info.ready <= entered for info in children)


@with_children_only
def test_gpu_memory_of_ranks(make_executor) -> None:
    """It is known of ranks that have used CUDA."""
    with make_executor(2, caller_rank=None) as executor:
        without = executor.submit(os.getpid)
        future = executor.submit(ranked_functions.use_gpu_memory, 3 << 30)
        future.result()
    assert [info.peak_gpu_memory for info in future.ranks] == [3 << 30] * 2
    assert [info.peak_gpu_memory for info in without.ranks] == [None] * 2


@with_children_only
def test_gpu_that_has_failed(make_executor) -> None:
    """What the function raised is what counts, not what asking for its memory raises."""
    future = make_executor(2, caller_rank=None).submit(ranked_functions.fail_on_gpu)
    assert isinstance(future.exception(), ValueError)


def test_ranks_of_a_failed_gang(make_executor) -> None:
    """The exit code tells how a rank ended."""
    executor = make_executor(2, caller_rank=None)
    future = executor.submit(ranked_functions.raise_on, 0, ValueError())
    assert isinstance(future.exception(), ValueError)
    executor.shutdown()
    assert future.ranks[1].exitcode == -9
    assert future.ranks[1].reaped is not None


@with_children_only
def test_ranks_of_a_running_gang(running) -> None:
    """They are known while it runs, and can be looked at."""
    _, future, pids = running
    wait_until(lambda: [info.pid for info in future.ranks] == pids)
    assert all(psutil.Process(pid).ppid() != os.getpid() for pid in pids)
    assert [info.reaped for info in future.ranks] == [None, None]


@with_the_caller
def test_ranks_of_a_gang_that_never_began(make_executor) -> None:
    """What cannot be shipped has ranks of which nothing is known."""
    future = make_executor(2).submit(ranked_functions.returning, (item for item in ()))
    assert future.exception() is not None
    assert future.ranks == [RankInfo(0), RankInfo(1)]


@with_children_only
def test_gang_that_is_over_before_submit_returns(make_executor, monkeypatch) -> None:
    """The thread that submits may be the slower one."""
    run_apart = Shared._run_apart

    def run_to_the_end(shared: Shared, job: Job) -> None:
        run_apart(shared, job)
        wait_until(lambda: not hasattr(job, "future"), "nothing of ours holds it")

    monkeypatch.setattr(Shared, "_run_apart", run_to_the_end)
    assert make_executor(2).submit(ranked_functions.returning, 5).result() == 5


def pids_are_known(future: RankedFuture) -> bool:
    """Return whether the ranks' processes have been announced."""
    return bool(future.ranks) and all(info.pid for info in future.ranks)


@with_children_only
def test_ranks_are_known_whoever_asks_for_processes(make_executor) -> None:
    """When one is started, multiprocess asks all its children for news: ours are not lost."""
    executor = make_executor(2, max_gangs=1)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            multiprocess.active_children()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(10):
            future = executor.submit(time.sleep, 600)
            wait_until(partial(pids_are_known, future))
            future.cancel()
    finally:
        stop.set()
        asking.join()
