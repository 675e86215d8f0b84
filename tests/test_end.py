"""The end of a rank is that of a Python process; and what it waits for has a limit."""

from __future__ import annotations

import gzip
import os
import signal
import sys
import time
from functools import partial
from multiprocessing import resource_tracker, shared_memory

import leaving_ranks
import pytest
from faulty_ranks import throw
from helpers import Marks, running_script, with_children_only, with_the_caller
from leaving_ranks import on_rank_1

from rankexec import GangTimeout, RankedExecutor, errors
from rankexec._gang import leaving

LEFT = [
    leaving_ranks.in_a_global,
    leaving_ranks.in_bytes,
    leaving_ranks.in_a_module,
    leaving_ranks.in_a_cycle,
    leaving_ranks.frozen,
    leaving_ranks.compressed,
    leaving_ranks.of_c,
    leaving_ranks.of_a_logger,
    leaving_ranks.at_exit,
    leaving_ranks.at_the_end_of_c,
    leaving_ranks.by_finalize,
    leaving_ranks.by_del,
    leaving_ranks.by_a_thread,
    leaving_ranks.by_a_queue,
]


@pytest.mark.parametrize("session", [False, True], ids=["gang", "session"])
@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_what_a_rank_leaves_to_be_done(make_executor, tmp_path, pytestconfig, leave, session):
    """Its files are on disk, its exit functions have run, and its threads have ended."""
    if leave is leaving_ranks.by_del and pytestconfig.getoption("launcher") == "spawn":
        pytest.skip("an interpreter at its end has no `open` any more")
    path = tmp_path / "file"
    executor = make_executor()
    where = executor.session() if session else executor
    assert where.submit(on_rank_1, leave, str(path)).exception() is None
    if session:
        where.close()
    executor.shutdown()
    data = path.read_bytes()
    assert (gzip.decompress(data) if leave is leaving_ranks.compressed else data) == b"x"
    assert not os.path.exists(f"{path}.gone")


def test_temporary_directory(make_executor, tmp_path):
    """It is removed."""
    executor = make_executor()
    executor.submit(on_rank_1, leaving_ranks.by_a_temporary_directory, str(tmp_path / "f")).result()
    executor.shutdown()
    assert not os.path.exists((tmp_path / "f").read_text())


def test_exit_function_that_raises(make_executor, tmp_path, capfd):
    """Its traceback is printed, as the interpreter does; the others run."""
    executor = make_executor()
    executor.submit(on_rank_1, leaving_ranks.at_exit, str(tmp_path / "f")).result()
    executor.shutdown()
    assert "fails at exit" in "".join(capfd.readouterr())


# --- the limit ---


@pytest.mark.parametrize("session", [False, True], ids=["gang", "session"])
@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (leaving_ranks.start_saver, "thread 'saver' in run "),
        (leaving_ranks.hang_at_exit, "thread 'MainThread' in _hang "),
    ],
    ids=["thread", "exit function"],
)
def test_leave_timeout(make_executor, leave, what, session):
    """The future does not wait; then the rank is ended, and a warning says what it waited for."""
    executor = make_executor(leave_timeout=0.3)
    where = executor.session() if session else executor
    future = where.submit(on_rank_1, leave)
    assert future.exception(30) is None
    with pytest.warns(RuntimeWarning, match="leave_timeout") as warned:
        executor.shutdown()
    (message,) = [str(w.message) for w in warned]
    assert what in message
    assert f"rank 1 (pid {future.ranks[1].pid}) " in message
    if not session:
        assert future.ranks[1].exitcode == -signal.SIGKILL


@pytest.mark.parametrize("given", ["1", True, 0, -1.0, 10**400])
def test_wrong_leave_timeout(given):
    """It is refused, by its name."""
    with pytest.raises((TypeError, ValueError), match="leave_timeout takes seconds"):
        RankedExecutor(2, leave_timeout=given)


def test_options_change_leave_timeout(make_executor):
    """For the gangs of that executor."""
    executor = make_executor(leave_timeout=None)
    executor.options(leave_timeout=0.5).submit(on_rank_1, leaving_ranks.start_saver).result()
    with pytest.warns(RuntimeWarning, match=r"within 0\.5 s after its call"):
        executor.shutdown()


def test_failed_gang_waits_for_nothing(make_executor):
    """Ranks that are ended are ended at once, whatever threads they have."""
    executor = make_executor()
    fails = partial(throw, ValueError("no"))
    began = time.monotonic()
    error = executor.submit(_both, leaving_ranks.start_saver, fails).exception()
    executor.shutdown()
    assert type(error) is ValueError
    assert time.monotonic() - began < 30


def _both(first, second):
    if os.environ["RANK"] == "1":
        first()
        second()


@with_the_caller
def test_next_gang_waits_for_the_place(make_executor, monkeypatch, caller_rank):
    """That with a caller's rank does so too: with a warning, and no longer than its `timeout`."""
    monkeypatch.setattr(leaving, "WARNING_SECONDS", 0.1)
    executor = make_executor()
    executor.submit(on_rank_1, leaving_ranks.start_saver, 4).result()
    with pytest.warns(RuntimeWarning, match="the ranks of the one before"):
        error = executor.options(timeout=0.5).submit(int).exception()
    assert type(error) is GangTimeout
    assert executor.submit(int).result() == 0


SHUTDOWN_SCRIPT = """
import leaving_ranks
with contextlib.suppress(KeyboardInterrupt):
    with RankedExecutor(2, caller_rank={caller_rank}) as executor:
        where = executor.session() if {session} else executor
        where.submit(leaving_ranks.on_rank_1, leaving_ranks.start_saver).result()
        mark(marks)
        {then}
        print("not interrupted")
print("over", flush=True)
"""


@pytest.mark.parametrize(
    ("session", "then"),
    [(False, "executor.shutdown()"), (True, "where.close()"), (False, "executor.submit(int)")],
    ids=["shutdown", "session", "next gang"],
)
def test_ctrl_c_ends_ranks_that_leave(tmp_path, caller_rank, session, then):
    """Who waits for them waits no longer."""
    if caller_rank is None and "submit" in then:
        pytest.skip("nobody waits")
    marks = Marks(tmp_path / "marks")
    body = SHUTDOWN_SCRIPT.format(caller_rank=caller_rank, session=session, then=then)
    with running_script(tmp_path, marks, "import os; os.environ['RANK'] = '0'" + body) as process:
        marks.wait_for(1)
        time.sleep(0.3)  # it is about to wait; before that, Ctrl-C is nothing special
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    assert (out.split(), process.returncode) == (["over"], 0), err


# --- shared memory ---


def blocks_of(pids) -> list[str]:
    """Return what stands in /dev/shm under the names that these processes gave."""
    marks = [f"leaving_{pid}" for pid in pids]
    return [n for n in os.listdir("/dev/shm") if any(n.startswith(mark) for mark in marks)]


ENDINGS = [int, partial(throw, ValueError()), partial(os._exit, 7)]


@pytest.mark.skipif(sys.platform != "linux", reason="no /dev/shm here")
@pytest.mark.parametrize("ending", ENDINGS, ids=["return", "raise", "die"])
def test_blocks_that_a_rank_has_made(make_executor, capfd, ending):
    """They are removed when it is gone, however it ends; and nothing is said."""
    executor = make_executor()
    future = executor.submit(on_rank_1, leaving_ranks.make_block, ending)
    assert (future.exception() is None) == (ending is int)
    if isinstance(future.exception(), errors.RankDied):
        assert future.exception().stderr_tail == ""
    executor.shutdown()
    assert blocks_of([future.ranks[1].pid]) == []
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("session", [False, True], ids=["gang", "session"])
def test_block_of_the_callers(make_executor, capfd, session):
    """It lives until its owner unlinks it, however many ranks have attached it and ended."""
    block = shared_memory.SharedMemory(create=True, size=64)
    try:
        executor = make_executor()
        for _ in range(2):
            where = executor.session() if session else executor
            where.submit(leaving_ranks.write_to_block, block.name).result()
            if session:
                where.close()
        executor.shutdown()
        assert bytes(block.buf[:2]) == b"\7\7"
        shared_memory.SharedMemory(block.name).close()
    finally:
        block.close()
        block.unlink()
        resource_tracker._resource_tracker._stop()
    assert "".join(capfd.readouterr()) == ""


@with_children_only
def test_block_made_in_a_process_of_the_ranks(make_executor, capfd):
    """A rank may unlink it; the tracker that they share prints nothing."""
    executor = make_executor()
    executor.submit(on_rank_1, leaving_ranks.make_block_in_a_fork).result()
    executor.shutdown()
    assert "".join(capfd.readouterr()) == ""
