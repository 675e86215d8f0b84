"""What becomes of a gang when a rank's process dies, hangs, or leaves processes behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from functools import partial

import faulty_ranks
import psutil
import pytest
import ranked_functions
from faulty_ranks import leaving_behind, marked, one_does, throw
from helpers import Marks, is_running, last_guardian, run_script, wait_until
from test_faults import WORLD, check_usable

from rankexec import LauncherDied, RankDied, RankedExecutor
from rankexec._gang import reap
from rankexec._gang.call import Died
from rankexec.launchers._guarded import GUARDIANS
from rankexec.launchers._popen import RankProcess

# The caller's own process is the test's, so it is always a child that dies.
in_each_child = pytest.mark.parametrize(
    ("caller_rank", "rank"),
    [(0, WORLD - 1), (None, 0), (None, WORLD - 1)],
    ids=["caller_rank=0-last rank", "caller_rank=None-rank 0", "caller_rank=None-last rank"],
)
in_one_child = pytest.mark.parametrize(
    ("caller_rank", "rank"), [(0, WORLD - 1), (None, 0)], ids=["caller_rank=0", "caller_rank=None"]
)


@pytest.fixture
def marks(tmp_path):
    """Where processes write down that they ran; none of them lives when the test is over."""
    marks = Marks(tmp_path / "marks")
    yield marks
    left = marks.living()
    for process in left:
        process.kill()
    assert left == []


@pytest.mark.parametrize(
    ("death", "exitcode", "name"),
    [
        (partial(faulty_ranks.exit_at_once, 7), 7, None),
        (partial(faulty_ranks.die_of, signal.SIGKILL), -signal.SIGKILL, "SIGKILL"),
        (partial(faulty_ranks.die_of, signal.SIGTERM), -signal.SIGTERM, "SIGTERM"),
        (faulty_ranks.crash, -signal.SIGSEGV, "SIGSEGV"),
    ],
    ids=["os._exit(7)", "SIGKILL", "SIGTERM", "SIGSEGV"],
)
@in_each_child
def test_death(make_executor, rank, death, exitcode, name):
    """RankDied says which process died of what, with the last lines of its stderr."""
    executor = make_executor()
    future = executor.submit(one_does, rank, death)
    error = future.exception()
    assert type(error) is RankDied
    assert (error.rank, error.world_size) == (rank, WORLD)
    assert (error.pid, error.host) == (future.ranks[rank].pid, socket.gethostname())
    assert (error.exitcode, error.signal_name) == (exitcode, name)
    assert error.stderr_tail.endswith("last words")
    assert len(error.stderr_tail.splitlines()) <= 20
    assert isinstance(error.rank_outcomes[rank], Died)
    assert error.rank_outcomes[1 - rank] is None
    check_usable(executor)
    executor.shutdown()
    assert future.ranks[rank].exitcode == exitcode


@in_each_child
def test_death_before_the_call_is_unpacked(make_executor, rank):
    """A rank that dies while it starts is named too; the other ranks never begin."""
    executor = make_executor()
    bad = faulty_ranks.WhenUnpickled(rank, partial(os._exit, 7))
    error = executor.submit(ranked_functions.returning, bad).exception()
    assert type(error) is RankDied
    assert (error.rank, error.exitcode) == (rank, 7)
    check_usable(executor)


@in_each_child
def test_death_while_the_context_is_left(make_executor, rank):
    """A rank that dies after its function has returned fails the gang."""
    executor = make_executor(ctx=faulty_ranks.DiesLeaving(rank, 7))
    error = executor.submit(ranked_functions.rank).exception()
    assert type(error) is RankDied
    assert (error.rank, error.exitcode) == (rank, 7)
    check_usable(executor)


@pytest.mark.parametrize(
    "others",
    [
        faulty_ranks.hang,
        faulty_ranks.spin,
        faulty_ranks.c_call,
        faulty_ranks.c_call_with_gil,
        faulty_ranks.stop,
    ],
    ids=lambda others: others.__name__,
)
@pytest.mark.parametrize("caller_rank", [1, None], ids=["caller_rank=1", "caller_rank=None"])
def test_child_hangs_while_another_rank_raises(make_executor, others):
    """Whatever the hanging child is doing, it is ended."""
    executor = make_executor()
    error = executor.submit(one_does, 1, partial(throw, ValueError("last")), others).exception()
    assert type(error) is ValueError
    check_usable(executor)


@pytest.mark.parametrize(
    "others",
    [
        faulty_ranks.hang,
        faulty_ranks.spin,
        faulty_ranks.wait_for_lock,
        faulty_ranks.wait_for_pipe,
        faulty_ranks.swallow_one,
    ],
    ids=lambda others: others.__name__,
)
def test_callers_rank_hangs_while_another_raises(others):
    """The caller's rank is broken out of what its main thread is doing in Python."""
    with RankedExecutor(WORLD) as executor:
        error = executor.submit(one_does, 1, partial(throw, ValueError("last")), others).exception()
        assert type(error) is ValueError
        check_usable(executor)


def test_callers_rank_in_a_thread_spins_while_another_raises():
    """In another thread, a Python loop is broken off."""
    found = []

    def submit(executor):
        call = executor.submit(one_does, 1, partial(throw, ValueError("last")), faulty_ranks.spin)
        found.append(call.exception())

    with RankedExecutor(WORLD) as executor:
        thread = threading.Thread(target=submit, args=(executor,))
        thread.start()
        thread.join()
        assert type(found[0]) is ValueError
        check_usable(executor)


@pytest.mark.parametrize("caller_rank", [0, None], ids=["caller_rank=0", "caller_rank=None"])
def test_caller_with_all_signals_blocked(tmp_path, caller_rank):
    """A death is seen, and the caller's rank broken off, whatever signals the caller blocks."""
    out = run_script(
        tmp_path,
        f"""
import signal
from functools import partial
import faulty_ranks
from rankexec import RankedExecutor

signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
with RankedExecutor(2, caller_rank={caller_rank}, output="caller") as executor:
    dies = partial(faulty_ranks.exit_at_once, 7)
    print(executor.submit(faulty_ranks.one_does, 1, dies).exception().exitcode)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked)
""",
    )
    assert out.split() == ["7", "True"]


@pytest.mark.parametrize("warnings_are", ["shown", "errors"])
def test_callers_rank_that_cannot_be_broken_off(monkeypatch, warnings_are):
    """A lock in another thread ends when it ends; until then, once, a warning shows the stack."""
    warned, found = [], []

    def warn(message, category=UserWarning, **_):
        warned.append((str(message), category))
        if warnings_are == "errors":
            raise category(message)

    def submit(executor):
        fails = partial(throw, ValueError("last"))
        found.append(executor.submit(one_does, 1, fails, faulty_ranks.wait_for_test).exception())

    monkeypatch.setattr(warnings, "warn", warn)
    monkeypatch.setattr(reap, "STUCK_SECONDS", 0.5)
    with faulty_ranks.TEST, RankedExecutor(WORLD) as executor:
        thread = threading.Thread(target=submit, args=(executor,), daemon=True)
        thread.start()
        wait_until(lambda: warned, "the warning")
        assert found == []
        faulty_ranks.TEST.release()
        thread.join(60)
        faulty_ranks.TEST.acquire()
        assert not thread.is_alive()
        assert type(found[0]) is ValueError
        check_usable(executor)
    ((message, category),) = warned
    assert category is RuntimeWarning
    assert "cannot be broken off" in message
    assert "wait_for_test" in message


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm here")
def test_shared_memory_that_a_killed_rank_leaves(make_executor):
    """What torch had made and not yet unlinked is removed, the rank's and its workers'."""
    executor = make_executor()
    mark = f"1_of_{os.getpid()}"  # other programs of this host have theirs there
    leave = partial(faulty_ranks.leave_shared_memory, mark)
    error = executor.submit(one_does, 1, leave).exception()
    assert type(error) is RankDied
    executor.shutdown()
    assert [name for name in os.listdir("/dev/shm") if name.endswith(mark)] == []


@pytest.mark.parametrize("fails", [False, True])
def test_context_that_frees_the_callers_rank(recwarn, fails):
    """What nothing of ours can break off, its context can; how often it is asked is not said."""
    found = []

    def submit(executor):
        dies = partial(os._exit, 7)
        found.append(executor.submit(one_does, 1, dies, faulty_ranks.wait_for_test).exception())

    with faulty_ranks.TEST, RankedExecutor(WORLD, ctx=faulty_ranks.Aborts(fails)) as executor:
        thread = threading.Thread(target=submit, args=(executor,), daemon=True)
        thread.start()
        thread.join(60)
        faulty_ranks.TEST.acquire()
        assert type(found[0]) is RankDied
    texts = [str(warning.message) for warning in recwarn]
    assert (
        texts
        == ["the context of rank 0, which was to abort, raised OSError('cannot abort')"] * fails
    )


@pytest.mark.parametrize(
    "ending",
    [int, partial(throw, ValueError()), partial(os._exit, 7)],
    ids=["return", "raise", "die"],
)
@pytest.mark.parametrize(
    "leave",
    [
        faulty_ranks.leave_popen,
        faulty_ranks.leave_session,
        faulty_ranks.leave_orphan,
        faulty_ranks.leave_daemon,
        faulty_ranks.leave_runaway,
    ],
    ids=lambda leave: leave.__name__,
)
@in_one_child
def test_processes_that_a_rank_leaves_behind(make_executor, marks, rank, leave, ending):
    """They end with their rank, however it ends and whatever they did to get away."""
    executor = make_executor()
    future = executor.submit(
        one_does, rank, partial(leaving_behind, leave, str(marks), ending), int
    )
    assert (future.exception() is None) == (ending is int)
    executor.shutdown()
    assert marks.living() == []
    assert not marks.held()


def test_processes_of_the_callers_own_rank_are_the_callers(marks):
    """What rank 0 starts in the caller lives on when the gang is over."""
    with RankedExecutor(WORLD) as executor:
        mine = executor.submit(one_does, 0, faulty_ranks.start_sleeper, int).result()
        with mine:
            assert mine.poll() is None
            mine.kill()


def test_guardian_killed(make_executor, marks):
    """LauncherDied, no rank is left, and the next gang has a new guardian."""
    executor = make_executor()
    executor.submit(int).result()
    first = last_guardian()

    def kill_when_running():
        marks.wait_for(WORLD)
        _guardian().kill()

    thread = threading.Thread(target=kill_when_running)
    thread.start()
    future = executor.submit(marked, str(marks), faulty_ranks.hang)
    assert type(future.exception()) is LauncherDied
    assert first not in GUARDIANS._by_key.values()  # dying, it might look alive to the next gang
    thread.join()
    wait_until(lambda: not marks.living())
    marks.clear()
    check_usable(executor)


def test_guardian_killed_between_gangs(make_executor):
    """Nobody notices: the next gang has a new one."""
    executor = make_executor()
    check_usable(executor)
    guardian = _guardian()
    guardian.kill()
    wait_until(lambda: not is_running(guardian.pid))
    check_usable(executor)


def test_guardian_killed_while_a_gang_starts(make_executor):
    """Either the gang was started by a new one, or it is LauncherDied."""
    executor = make_executor()
    _guardian().kill()
    assert type(executor.submit(ranked_functions.rank).exception()) in {LauncherDied, type(None)}
    check_usable(executor)


def _guardian() -> psutil.Process:
    """Return the guardian that the last gang had."""
    return psutil.Process(last_guardian()._process.pid)


def test_a_kill_that_fails(monkeypatch):
    """A launcher whose `kill` raises leaves no peer of that rank alive, and hides no failure."""
    kill = RankProcess.kill

    def kill_and_raise(process):
        kill(process)
        raise PermissionError("not that one")

    monkeypatch.setattr(RankProcess, "kill", kill_and_raise)
    with RankedExecutor(3, caller_rank=None) as executor:
        with pytest.warns(RuntimeWarning, match=r"rank \d .* could not be killed: Permission"):
            error = executor.submit(
                one_does, 1, partial(throw, ValueError("the cause"))
            ).exception()
        assert str(error) == "the cause"
