"""Ctrl-C while a program waits for gangs that have no caller's rank: it means these gangs, too."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator

import faulty_ranks
import pytest
from helpers import MARK, marked, own_processes, wait_until, with_children_only

from rankexec import RankDied

BEGIN = """\
import asyncio, concurrent.futures, time
from rankexec import RankedExecutor
ex = RankedExecutor(2, caller_rank=None, max_gangs=2)
ex.submit(int).result()
def hang(): time.sleep(600)
def go(): print("go", flush=True)
"""
PROGRAMS = {
    "in result": "f = ex.submit(hang); go(); f.result()",
    "in exception": "f = ex.submit(hang); go(); f.exception()",
    "caught, then without waiting": """\
f = ex.submit(hang); go()
try: f.result()
except KeyboardInterrupt: pass
ex.shutdown(wait=False, cancel_futures=True)""",
    "in a block": "with ex:\n    f = ex.submit(hang); go(); f.result()",
    "caught in a block": """\
with ex:
    f = ex.submit(hang); go()
    try: f.result()
    except KeyboardInterrupt: pass""",
    "at the end of a block": "with ex:\n    ex.submit(hang); go()",
    "in shutdown": "ex.submit(hang); go(); ex.shutdown()",
    "at exit": "ex.submit(hang); go()",
    "at exit, with pending ones": "fs = [ex.submit(hang) for _ in range(5)]; go()",
    "in the standard library's wait": "fs = [ex.submit(hang)]; go(); concurrent.futures.wait(fs)",
    "in map": "for _ in ex.map(lambda _: hang(), (go() for _ in range(1))): pass",
    "under asyncio": """\
async def main():
    future = ex.submit(hang)
    go()
    await asyncio.wrap_future(future)
asyncio.run(main())""",
    "in a session": "s = ex.session(); f = s.submit(hang); go(); f.result()",
    "in a session's block": "with ex.session() as s:\n    s.submit(hang); go()",
    "in a session's close": "s = ex.session(); f = s.submit(hang); go(); s.close()",
    "with a session at exit": "s = ex.session(); f = s.submit(hang); go()",
}
SOON = 60.0
"""Seconds: a bound for a loaded machine; the ranks would take ten minutes."""


@contextlib.contextmanager
def running(program: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program in a process group of its own; nothing of it is left in the end."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, MARK: mark},
        start_new_session=True,
    )
    try:
        yield process, mark
    finally:
        for left in marked(mark):
            left.kill()
        process.communicate()


@pytest.mark.parametrize("to", ["one process", "the group"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c(program, to) -> None:
    """The program is over, by itself, and nothing of its gangs is left."""
    with running(PROGRAMS[program]) as (process, mark):
        assert process.stdout.readline() == "go\n"
        wait_until(lambda: len(marked(mark)) > 2, "the gang is there")
        send = os.kill if to == "one process" else os.killpg
        send(process.pid, signal.SIGINT)
        process.wait(SOON)
        wait_until(lambda: not marked(mark), "no process of the program is left")


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_at_random_moments(seed) -> None:
    """Whatever the program is about, and though it comes twice."""
    draw = random.Random(seed)
    for name in draw.sample(list(PROGRAMS), 4):
        with running(PROGRAMS[name]) as (process, mark):
            assert process.stdout.readline() == "go\n"
            for _ in range(2):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(draw.random() / 5)  # a moment, not a wait
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            process.wait(SOON)
            wait_until(lambda mark=mark: not marked(mark), f"{name}: nothing of it is left")


@with_children_only
def test_result_of_one_gang(make_executor) -> None:
    """Ctrl-C in `result` ends that gang; the others go on, and so does the executor."""
    executor = make_executor(1, max_gangs=2)
    other = executor.submit(os.getpid)
    hanging = executor.submit(faulty_ranks.hang)
    wait_until(lambda: hanging.ranks[0].fn_entered or hanging.ranks[0].ready)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        hanging.result()
    timer.join()
    assert hanging.cancelled()
    assert isinstance(other.result(), int)
    assert executor.submit(int).result() == 0


@with_children_only
@pytest.mark.parametrize("way", ["terminate_workers", "kill_workers"])
def test_workers_are_ended(make_executor, way) -> None:
    """What runs fails of its ranks' deaths, what is pending is cancelled, and no more is taken."""
    executor = make_executor(2, max_gangs=1)
    runs = executor.submit(faulty_ranks.hang)
    pending = executor.submit(int)
    wait_until(lambda: all(info.ready for info in runs.ranks))
    getattr(executor, way)()
    error = runs.exception(SOON)
    assert isinstance(error, RankDied)
    assert error.signal_name == ("SIGKILL" if way == "kill_workers" else "SIGTERM")
    assert pending.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    wait_until(lambda: own_processes() == [])


@with_children_only
@pytest.mark.parametrize("way", ["terminate_workers", "kill_workers"])
def test_workers_of_a_session_are_ended(make_executor, way) -> None:
    """As those of gangs."""
    executor = make_executor(2)
    session = executor.session()
    runs = session.submit(faulty_ranks.hang)
    wait_until(lambda: all(info.ready for info in runs.ranks))
    getattr(executor, way)()
    assert isinstance(runs.exception(SOON), RankDied)
    wait_until(lambda: own_processes() == [])


def first(items: list[int]) -> int:
    """Return the first of the items, as it is often written."""
    return next(iter(items))


@pytest.mark.parametrize("options", [{}, {"buffersize": 2}], ids=["all", "buffer"])
@pytest.mark.parametrize("on", ["executor", "session"])
def test_stop_iteration(make_executor, on, options) -> None:
    """It does not end a `map` as if there was nothing more: it is an error, as in a generator."""
    executor = make_executor(2)
    runs = executor if on == "executor" else executor.session()
    found = []
    with pytest.raises(RuntimeError) as info:
        found.extend(runs.map(first, [[1], [2], [], [4]], **options))
    assert isinstance(info.value.__cause__, StopIteration)
    assert runs.submit(first, [5]).result() == 5
