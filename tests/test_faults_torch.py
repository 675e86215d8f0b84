"""Faults of gangs in a process group: whoever waits in gloo for a rank that is gone comes back."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import sys
import threading
from functools import partial

import faulty_ranks
import psutil
import pytest
from faulty_ranks import all_reduce, marked, one_does, throw
from helpers import Marks
from test_faults import WORLD, on_each_rank
from test_faults_death import in_each_child, in_one_child
from test_faults_timeout import timed_out

from rankexec import GangTimeout, RankDied, RankedExecutor, TorchDDPCtx
from rankexec._gang.call import Died, Raised

torch = pytest.importorskip("torch")


def test_the_hook_of_uncaught_exceptions_stays(make_executor):
    """Every group wraps it once more, to print the rank; after a gang it is as it was."""
    before = sys.excepthook
    make_executor(ctx=TorchDDPCtx()).submit(all_reduce).result()
    assert sys.excepthook is before


@pytest.fixture(autouse=True)
def no_group_left():
    """The caller has no default group before, and none after, whatever happened."""
    assert not torch.distributed.is_initialized()
    threads = torch.get_num_threads()
    yield
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads


@pytest.fixture
def make_executor(make_executor):
    """Make executors of ranks in a group; one that hangs shows its stacks."""
    return partial(make_executor, ctx=TorchDDPCtx(), timeout=100)


def check_usable(executor: RankedExecutor) -> None:
    """After a failure the caller is as before, and the next group works."""
    assert "RANK" not in os.environ
    assert not torch.distributed.is_initialized()
    assert executor.options(timeout=60, ctx=TorchDDPCtx).submit(all_reduce).result() == WORLD


@on_each_rank
def test_raise_while_the_other_waits(make_executor, rank):
    """The exception is the cause; that the other lost its connection is a consequence."""
    executor = make_executor()
    future = executor.submit(one_does, rank, partial(throw, ValueError("cause")), all_reduce)
    error = future.exception()
    assert type(error) is ValueError
    other = error.rank_outcomes[1 - rank]
    assert other is None or (isinstance(other, Raised) and other.lost_connection)
    check_usable(executor)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_first_failure_is_named_ten_times_of_ten(caller_rank):
    """Rank 1 raises ValueError while the others wait in all_reduce: that is the error, always."""
    size = 3 if caller_rank == 0 else 2  # two children either way: torch takes long to import
    with RankedExecutor(size, caller_rank=caller_rank, ctx=TorchDDPCtx()) as executor:
        for count in range(10):
            call = partial(throw, ValueError("cause", count))
            future = executor.submit(one_does, 1, call, all_reduce)
            error = future.exception()
            assert type(error) is ValueError
            assert error.args == ("cause", count)
            where = f"rank 1 of {size}, pid {future.ranks[1].pid} on {socket.gethostname()}"
            if sys.version_info >= (3, 11):
                assert error.__notes__ == [where]
            else:
                assert where in str(error.__cause__)
            assert "in throw" in str(error.__cause__)
            assert error.rank_outcomes[1].exception is error
            for outcome in error.rank_outcomes[0], *error.rank_outcomes[2:]:
                assert outcome is None or (isinstance(outcome, Raised) and outcome.lost_connection)


@pytest.mark.parametrize(
    ("death", "exitcode"),
    [
        (partial(os._exit, 7), 7),
        (partial(faulty_ranks.die_of, signal.SIGKILL), -signal.SIGKILL),
        (faulty_ranks.crash, -signal.SIGSEGV),
    ],
    ids=["os._exit(7)", "SIGKILL", "SIGSEGV"],
)
@in_each_child
def test_death_while_the_other_waits(make_executor, rank, death, exitcode):
    """The death is the cause, and the caller's rank comes out of its collective."""
    executor = make_executor()
    error = executor.submit(one_does, rank, death, all_reduce).exception()
    assert type(error) is RankDied
    assert (error.rank, error.exitcode) == (rank, exitcode)
    assert isinstance(error.rank_outcomes[rank], Died)
    if exitcode == 7:
        check_usable(executor)


def test_rank_hangs_while_one_waits_and_one_raises(caller_rank):
    """A stuck but living peer holds nobody: it is killed, which ends the collective."""
    with RankedExecutor(3, caller_rank=caller_rank, ctx=TorchDDPCtx()) as executor:
        waits_or_hangs = partial(one_does, 0, all_reduce)
        raises = partial(throw, ValueError("cause"))
        assert type(executor.submit(one_does, 2, raises, waits_or_hangs).exception()) is ValueError


def test_rank_that_returns_too_early(make_executor):
    """With nothing but a lost connection to go by, that is the error."""
    executor = make_executor()
    error = executor.submit(one_does, 0, all_reduce, int).exception()
    assert isinstance(error, RuntimeError)
    assert error.rank_outcomes[0].lost_connection
    check_usable(executor)


def test_collective_whose_error_is_swallowed(make_executor):
    """A rank that makes light of its lost connection does not hide the cause."""
    executor = make_executor()
    call = partial(throw, ValueError("cause"))
    error = executor.submit(one_does, 1, call, faulty_ranks.all_reduce_or_none).exception()
    assert type(error) is ValueError


@on_each_rank
def test_rank_that_never_joins(make_executor, tmp_path, rank):
    """A rendezvous ends with the time limit, and every rank's stack shows where it waits."""
    marks = Marks(tmp_path)
    executor = make_executor(ctx=partial(faulty_ranks.NeverJoins, rank, str(tmp_path)))
    error = timed_out(executor, marks, int)
    assert type(error) is GangTimeout
    assert "in hang" in error.stacks[rank]
    assert "init_process_group" in error.stacks[1 - rank]
    check_usable(executor)


@on_each_rank
def test_timeout_in_a_collective(make_executor, tmp_path, rank):
    """A collective ends with the time limit too."""
    marks = Marks(tmp_path)
    executor = make_executor()
    action = partial(one_does, rank, faulty_ranks.hang, all_reduce)
    error = timed_out(executor, marks, marked, str(tmp_path), action)
    assert "in hang" in error.stacks[rank]
    assert "in all_reduce" in error.stacks[1 - rank]
    check_usable(executor)


@pytest.mark.parametrize("where", ["rendezvous", "collective"])
def test_timeout_with_the_callers_rank_in_a_thread(tmp_path, where):
    """The same with rank 0 in a thread that no signal reaches."""
    marks, found = Marks(tmp_path), []

    def submit(executor):
        if where == "rendezvous":
            found.append(timed_out(executor, marks, int))
        else:
            action = partial(one_does, 0, all_reduce)
            found.append(timed_out(executor, marks, marked, str(tmp_path), action))

    never = partial(faulty_ranks.NeverJoins, 1, str(tmp_path))
    with RankedExecutor(WORLD, ctx=never if where == "rendezvous" else TorchDDPCtx()) as executor:
        thread = threading.Thread(target=submit, args=(executor,))
        thread.start()
        thread.join()
        assert type(found[0]) is GangTimeout
        check_usable(executor)


@pytest.mark.parametrize("ending", ["return", "raise"])
@in_one_child
def test_data_loader_workers_that_a_rank_leaves_behind(make_executor, tmp_path, rank, ending):
    """They end with their rank."""
    marks = Marks(tmp_path)
    executor = make_executor(ctx=None)
    action = int if ending == "return" else partial(throw, ValueError())
    call = partial(faulty_ranks.with_data_loader, str(marks), action)
    future = executor.submit(one_does, rank, call, int)
    assert (future.exception() is None) == (ending == "return")
    assert len(marks.names()) == 2
    executor.shutdown()
    assert marks.living() == []


@in_one_child
def test_rank_with_data_loader_workers_killed(make_executor, tmp_path, rank):
    """The workers hold its sockets, and yet its peer comes out of its collective."""
    marks = Marks(tmp_path)
    executor = make_executor()
    die = partial(faulty_ranks.die_of, signal.SIGKILL)
    call = partial(faulty_ranks.with_data_loader, str(marks), die)
    error = executor.submit(one_does, rank, call, all_reduce).exception()
    assert type(error) is RankDied
    assert error.rank == rank
    assert len(marks.names()) == 2
    executor.shutdown()
    assert marks.living() == []


@pytest.mark.slow
def test_rank_of_4_gib_killed(make_executor):
    """A process of gigabytes takes its time to be torn down; its peer does not wait for it."""
    if psutil.virtual_memory().available < 8 << 30:
        pytest.skip("not enough memory")
    executor = make_executor()
    call = partial(faulty_ranks.die_with_memory, 4 << 30)
    future = executor.submit(one_does, 1, call, all_reduce)
    error = future.exception()
    assert type(error) is RankDied
    assert error.rank == 1
    executor.shutdown()
    assert future.ranks[1].peak_memory > 4 << 30


def test_group_after_a_broken_rendezvous(tmp_path):
    """The caller's next group has the name that its peers, in fresh processes, expect."""
    never = partial(faulty_ranks.NeverJoins, 1, str(tmp_path))
    with RankedExecutor(WORLD, ctx=TorchDDPCtx(), timeout=60) as executor:
        assert executor.submit(all_reduce).result() == WORLD  # torch is imported by now
        error = executor.options(ctx=never, timeout=3).submit(int).exception()
        assert type(error) is GangTimeout
        assert "init_process_group" in error.stacks[0]
        assert executor.submit(all_reduce).result() == WORLD


def test_group_after_one_that_the_caller_could_not_make():
    """A rendezvous of the caller's own that failed before the gang does no harm either."""
    dist = torch.distributed
    with pytest.raises(dist.DistStoreError):
        dist.init_process_group(
            "gloo",
            store=dist.HashStore(),
            rank=0,
            world_size=WORLD,
            timeout=dt.timedelta(seconds=0.1),
        )
    with RankedExecutor(WORLD, ctx=TorchDDPCtx(), timeout=60) as executor:
        assert executor.submit(all_reduce).result() == WORLD
