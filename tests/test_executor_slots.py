"""How many gangs run at once, and on which devices."""

from __future__ import annotations

import itertools
import os
import threading
import time

import loky
import pytest
import ranked_functions
from helpers import wait_until, with_children_only, with_the_caller

from rankexec import RankedExecutor, TorchDDPCtx

CORES = loky.cpu_count()


@pytest.mark.parametrize(
    ("options", "gangs"),
    [
        ({"world_size": 1, "max_gangs": 3}, 3),
        ({"world_size": 1}, CORES),
        ({"world_size": CORES}, 1),
        ({"world_size": CORES + 1}, 1),
        ({"world_size": 2, "devices": "abcde"}, 2),
        ({"world_size": 3, "devices": "abcde"}, 1),
        ({"world_size": 2, "devices": "abcd", "max_gangs": 1}, 1),
    ],
)
def test_max_workers(make_executor, monkeypatch, options, gangs) -> None:
    """`_max_workers` says how many gangs can run at once: libraries read it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if "devices" in options:
        options = {**options, "devices": list(options["devices"])}
    executor = make_executor(**options)
    assert executor._max_workers == gangs
    assert executor.options(gather=True)._max_workers == gangs


@with_children_only
def test_side_by_side(make_executor, tmp_path) -> None:
    """Gangs run at the same time, up to `max_gangs`: these two come back only together."""
    executor = make_executor(1, max_gangs=2)
    one = executor.submit(ranked_functions.meet, str(tmp_path), "one", "other")
    other = executor.submit(ranked_functions.meet, str(tmp_path), "other", "one")
    assert one.result() == other.result()


@with_children_only
def test_more_gangs_than_cores(make_executor, tmp_path) -> None:
    """Without named devices ranks share the cores, and `max_gangs` alone decides."""
    names = [f"gang{number}" for number in range(CORES + 2)]
    executor = make_executor(2, max_gangs=len(names))
    futures = [
        executor.submit(ranked_functions.meet, str(tmp_path), name, *names) for name in names
    ]
    assert all(future.result() for future in futures)


@with_children_only
def test_one_after_the_other(make_executor) -> None:
    """With max_gangs=1 each gang is over before the next one starts, in the order of submit."""
    with make_executor(2, max_gangs=1) as executor:
        futures = [executor.submit(int) for _ in range(3)]
    for one, other in itertools.pairwise(futures):
        assert max(info.reaped for info in one.ranks) <= min(info.started for info in other.ranks)


@with_children_only
def test_threads_that_submit(make_executor) -> None:
    """Any thread may submit, at any time."""
    executor = make_executor(1, max_gangs=4)
    results = []

    def submit(number: int) -> None:
        results.append(executor.submit(ranked_functions.returning, number).result())

    threads = [threading.Thread(target=submit, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(12))


# --- devices ---


def test_devices_of_a_gang(make_executor, caller_rank) -> None:
    """Children see the gang's devices in the order given; each rank takes the one of its number."""
    executor = make_executor(2, devices=[7, "GPU-8f2e", 3], gather=True)
    future = executor.submit(
        ranked_functions.variables, "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "ACCELERATE_USE_CPU"
    )
    found = [list(variables.values()) for variables in future.result()]
    assert (
        found[caller_rank is not None :]
        == [
            ["7,GPU-8f2e", "0", None],
            ["7,GPU-8f2e", "1", None],
        ][caller_rank is not None :]
    )
    assert [info.device for info in future.ranks] == ["7", "GPU-8f2e"]


@with_the_caller
def test_the_caller_sees_what_it_saw(make_executor, monkeypatch) -> None:
    """CUDA reads the variable once: the caller's other GPUs would stay hidden for good."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9,7")
    executor = make_executor(1, devices=["7"])
    assert executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "9,7"


@with_children_only
def test_gangs_have_devices_of_their_own(make_executor, tmp_path) -> None:
    """Gangs that run side by side share none."""
    executor = make_executor(2, devices=["a", "b", "c", "d"])
    one = executor.submit(ranked_functions.meet, str(tmp_path), "one", "other")
    other = executor.submit(ranked_functions.meet, str(tmp_path), "other", "one")
    seen = [future.result()["CUDA_VISIBLE_DEVICES"] for future in (one, other)]
    assert sorted(seen) == ["a,b", "c,d"]


@with_children_only
def test_options_share_the_devices(make_executor, tmp_path) -> None:
    """Gangs of an executor made by `options` take theirs from the same ones."""
    executor = make_executor(2, devices=["a", "b", "c"], max_gangs=2)
    one = executor.submit(ranked_functions.meet, str(tmp_path), "one", "other")
    other = executor.options(world_size=1).submit(
        ranked_functions.meet, str(tmp_path), "other", "one"
    )
    seen = [future.result()["CUDA_VISIBLE_DEVICES"] for future in (one, other)]
    assert sorted(seen) in (["a,b", "c"], ["a", "b,c"])


@with_children_only
def test_first_come_first_served(make_executor, tmp_path) -> None:
    """A small gang does not overtake a large one that waits for devices."""
    executor = make_executor(2, devices=["a", "b", "c"], max_gangs=3)
    first = executor.submit(ranked_functions.wait_for, str(tmp_path / "go"))
    wait_until(first.running)
    large = executor.options(world_size=3).submit(int)
    wait_until(lambda: executor._shared.slots._queue, "the large one waits")
    small = executor.options(world_size=1).submit(int)
    assert not large.running()
    assert not small.running()
    (tmp_path / "go").touch()
    executor.shutdown()
    assert max(info.reaped for info in first.ranks) <= large.ranks[0].started
    assert max(info.reaped for info in large.ranks) <= small.ranks[0].started


@with_the_caller
def test_devices_that_only_the_waiting_gang_could_free(make_executor) -> None:
    """A rank that asks for its own gang's devices is told so, instead of waiting for ever."""
    executor = make_executor(1, devices=["a"])
    children = executor.options(caller_rank=None)

    def ask() -> None:
        future = children.submit(int)
        try:
            future.result(timeout=5)
        finally:
            future.cancel()

    with pytest.raises(RuntimeError, match="device"):
        executor.submit(ask).result()


def test_devices_after_a_failure(make_executor) -> None:
    """They are given back however a gang ends."""
    executor = make_executor(1, devices=["a"])
    for _ in range(3):
        assert isinstance(executor.submit(divmod, 1, 0).exception(), ZeroDivisionError)
    future = executor.submit(ranked_functions.returning, 5)
    assert (future.result(), future.ranks[0].device) == (5, "a")


@with_children_only
def test_devices_after_cancel(make_executor) -> None:
    """Also when the gang was cancelled, running or waiting."""
    executor = make_executor(1, devices=["a"], max_gangs=2)
    running, waiting = (executor.submit(time.sleep, 600) for _ in range(2))
    wait_until(running.running)
    waiting.cancel()
    running.cancel()
    assert executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "a"


def test_visible_gpus(make_executor, monkeypatch) -> None:
    """Without named devices ranks use the visible GPUs in order, if there are enough."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    future = make_executor(2).submit(ranked_functions.variables, "CUDA_VISIBLE_DEVICES")
    assert future.result() == {"CUDA_VISIBLE_DEVICES": "5,6"}
    assert [info.device for info in future.ranks] == ["5", "6"]
    future = make_executor(3).submit(ranked_functions.variables, "ACCELERATE_USE_CPU")
    assert future.result() == {"ACCELERATE_USE_CPU": "true"}
    assert [info.device for info in future.ranks] == [None] * 3


def test_the_callers_rank_has_the_device_named_for_it(monkeypatch) -> None:
    """Among all that the caller sees: its own variable stays, and it may have used CUDA already."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # the hardware that is absent
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    context = TorchDDPCtx(backend="gloo")
    with RankedExecutor(2, ctx=context, devices=[3, 1], caller_rank=1, gather=True) as executor:
        visible = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result()
        assert executor.options(ctx=None).submit(ranked_functions.rank).result() == [0, 1]
    assert visible == ["3,1", "0,1,2,3"]
    assert chosen == [1]


def test_a_device_that_the_caller_does_not_see(monkeypatch) -> None:
    """Its rank could not use it; nothing is started. Children alone can."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with RankedExecutor(2, devices=[2, 3]) as executor:
        with pytest.raises(ValueError, match=r"rank 0 .* sees the GPUs 0, 1; '2' of `devices`"):
            executor.submit(os.getpid).result()
        apart = executor.options(caller_rank=None, gather=True)
        assert apart.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == ["2,3"] * 2
