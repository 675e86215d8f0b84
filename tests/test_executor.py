"""RankedExecutor: who runs what and gets what back; options, shutdown; one caller at a time."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import threading
import time
import warnings

import loky
import pytest
import ranked_functions
from helpers import own_processes, wait_until, with_children_only, with_the_caller

import rankexec._gang.restore
from rankexec import GangTimeout, LocalLauncher, NotShippable, RankedExecutor, RankedFuture

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


# --- ranks ---


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_every_rank_runs_the_call(make_executor, world_size) -> None:
    """A gang has ranks 0 to world_size-1, and a gathered list is in their order."""
    executor = make_executor(world_size, gather=True)
    assert executor.submit(ranked_functions.rank).result() == list(range(world_size))


@pytest.mark.parametrize("caller_rank", [0, 1, 3, None])
def test_caller_rank(make_executor, caller_rank) -> None:
    """The calling process is that rank and no other; all others are processes of their own."""
    pids = make_executor(4, gather=True).submit(os.getpid).result()
    assert len(set(pids)) == 4
    assert [rank for rank, pid in enumerate(pids) if pid == os.getpid()] == (
        [] if caller_rank is None else [caller_rank]
    )


def test_calling_thread(make_executor, caller_rank) -> None:
    """The caller's rank runs in the calling thread, whichever that is."""
    idents = []
    thread = threading.Thread(
        target=lambda: idents.append(make_executor(1).submit(threading.get_ident).result())
    )
    thread.start()
    thread.join()
    assert (idents == [thread.ident]) is (caller_rank == 0)


@pytest.mark.parametrize("caller_rank", [0, 1, None])
def test_result_is_rank_0s(make_executor, caller_rank) -> None:
    """Without gather the future resolves to rank 0's value, wherever that ran."""
    assert make_executor(2).submit(ranked_functions.rank).result() == 0


def test_gather_by_a_function(make_executor) -> None:
    """It gets the list by rank, in the caller, and what it returns is the result."""
    executor = make_executor(2, gather=lambda values: (os.getpid(), values))
    assert executor.submit(ranked_functions.rank).result() == (os.getpid(), [0, 1])


def test_gather_that_raises(make_executor) -> None:
    """What a gather function raises is the future's."""
    future = make_executor(1, gather=lambda values: values[7]).submit(int)
    with pytest.raises(IndexError):
        future.result()


def test_arguments(make_executor) -> None:
    """Positional and keyword arguments arrive, also those named like submit's own."""
    executor = make_executor(2, gather=True)
    future = executor.submit(lambda *args, **kwargs: (args, kwargs), 1, self=2, fn=3, args=4)
    assert future.result() == [((1,), {"self": 2, "fn": 3, "args": 4})] * 2


@pytest.mark.parametrize("caller_rank", [0, 1])
def test_callers_own_objects(make_executor, caller_rank) -> None:
    """The caller's rank gets the very objects, and what it does to them is done to them."""
    seen = []
    thing = object()
    executor = make_executor(2, caller_rank=caller_rank, gather=True)
    future = executor.submit(lambda into, it: into.append(it) or into, seen, it=[thing])
    assert future.result()[caller_rank] is seen
    assert seen == [[thing]]


def test_an_unpicklable_result_of_the_caller(make_executor, caller_rank) -> None:
    """The caller's result is not pickled, and nobody asks for the others'."""
    future = make_executor(2).submit(lambda: (number for number in (1, 2)))
    if caller_rank == 0:
        assert list(future.result()) == [1, 2]
    else:
        assert type(future.exception()) is NotShippable


@with_children_only
def test_children_get_copies(make_executor) -> None:
    """What a child does to an argument stays there; what is one object stays one."""
    mine = []
    executor = make_executor(2)
    future = executor.submit(lambda a, b: (a.append(1), a is b, a)[1:], mine, b=mine)
    same, theirs = future.result()
    assert (mine, same, theirs) == ([], True, [1])


def test_each_gang_is_fresh(make_executor) -> None:
    """No process is used twice."""
    executor = make_executor(2, caller_rank=None, gather=True)
    pids = [pid for _ in range(3) for pid in executor.submit(os.getpid).result()]
    assert len(set(pids)) == 6


def test_an_exception_is_the_futures(make_executor) -> None:
    """`submit` raises nothing that a rank raised; the future does, with its own type."""
    future = make_executor(2).submit(divmod, 1, 0)
    assert isinstance(future.exception(), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        future.result()


def test_what_submit_returns(make_executor, caller_rank) -> None:
    """A RankedFuture; with a caller_rank it is done, else it runs."""
    future = make_executor(2).submit(time.sleep, 0.2)
    assert isinstance(future, RankedFuture)
    assert future.done() is (caller_rank == 0)


@pytest.mark.parametrize("devices", [None, ["7", "5", "3"]])
def test_default_world_size(monkeypatch, devices) -> None:
    """It is the number of devices, else of GPUs that can be seen, else of cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with RankedExecutor(devices=devices, caller_rank=None, gather=True) as executor:
        ranks = executor.submit(ranked_functions.rank).result()
    assert len(ranks) == (len(devices) if devices else loky.cpu_count())


def test_default_world_size_with_gpus(monkeypatch) -> None:
    """CUDA_VISIBLE_DEVICES says which GPUs can be seen."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f2e,1")
    with RankedExecutor(caller_rank=None, gather=True) as executor:
        assert executor.submit(ranked_functions.rank).result() == [0, 1, 2]


# --- submit inside a rank ---


@pytest.mark.parametrize("inner", [0, 1])
def test_nested_submit_with_a_caller_rank(make_executor, inner) -> None:
    """A thread that is a rank cannot be another one: a clear error, no deadlock."""
    said = make_executor(2, gather=True).submit(ranked_functions.nested, inner).result()
    assert [f"rank {rank} of a gang already" in text for rank, text in enumerate(said)] == [
        True
    ] * 2
    assert all("caller_rank=None" in text for text in said)


@with_the_caller
def test_submit_in_the_callers_side_of_a_context(make_executor) -> None:
    """Its thread has the turn already: a clear error, no deadlock."""
    executor = make_executor(1, ctx=ranked_functions.SubmitsInTheCaller())
    with pytest.raises(RuntimeError, match=r"busy with a gang already, rank in .*caller_rank=None"):
        executor.submit(ranked_functions.rank).result()
    assert executor.options(ctx=None).submit(ranked_functions.rank).result() == 0


def test_nested_submit_without(make_executor) -> None:
    """An executor of children works in a rank, be it the caller's or a child."""
    expected = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    future = make_executor(2, gather=True).submit(ranked_functions.nested, None)
    assert future.result() == [expected] * 2


@with_the_caller
def test_an_executor_from_outside_inside_a_rank(make_executor) -> None:
    """The caller's rank may use an executor that it did not make, if every rank is a child."""
    with RankedExecutor(1, caller_rank=None) as inner:
        future = make_executor(1).submit(
            lambda: inner.submit(ranked_functions.returning, 5).result()
        )
        assert future.result() == 5


@with_the_caller
@pytest.mark.parametrize("travel", [pickle.dumps, copy.copy, copy.deepcopy])
def test_executors_do_not_travel(make_executor, travel) -> None:
    """Pickling one is refused, with words that say what to do."""
    with pytest.raises(TypeError, match="cannot travel; make one in the rank"):
        travel(make_executor(1))


def test_executors_do_not_travel_to_ranks(make_executor) -> None:
    """The same for an argument."""
    executor = make_executor(2)
    with pytest.raises(NotShippable, match=r"argument 0 .*cannot travel"):
        executor.submit(ranked_functions.returning, executor).result()


class Trainer:
    """It holds an executor, as many do."""

    def __init__(self, executor: object) -> None:
        self.executor = executor

    def train(self) -> str:
        """Do not use it."""
        return repr(self.executor)

    def search(self) -> None:
        """Use it."""
        self.executor.submit(print)  # type: ignore[attr-defined]  # it has that

    def enter(self) -> None:
        """Use it in the other way."""
        with self.executor:  # type: ignore[attr-defined]  # it can
            pass

    def change(self) -> None:
        """Set something of it."""
        self.executor.options = None  # type: ignore[attr-defined]  # it has that


@with_children_only
def test_an_executor_that_is_dragged_along(make_executor) -> None:
    """It stops no call that does not use it, and one that does says what to do."""
    executor = make_executor(2)
    trainer = Trainer(executor)
    assert executor.submit(trainer.train).result() == "<a RankedExecutor of the caller>"
    for use in (trainer.search, trainer.enter, trainer.change):
        with pytest.raises(TypeError, match="cannot travel; make one in the rank"):
            executor.submit(use).result()
    back = executor.submit(copy.deepcopy, [trainer]).result()[0]
    with pytest.raises(TypeError, match="cannot travel; make one in the rank"):
        back.search()
    assert not hasattr(back.executor, "__wrapped__")
    with executor.session() as session:
        holder = Trainer(session)
        assert session.submit(holder.train).result() == "<a Session of the caller>"
        with pytest.raises(TypeError, match="a session holds processes of the caller"):
            session.submit(holder.search).result()


# --- options ---


def test_options(make_executor) -> None:
    """They give another executor; the first stays as it is."""
    executor = make_executor(2)
    gathering = executor.options(gather=True, env={"RANKEXEC_TEST_A": "1"})
    assert gathering.submit(ranked_functions.variables, "RANKEXEC_TEST_A").result() == (
        [{"RANKEXEC_TEST_A": "1"}] * 2
    )
    assert executor.submit(ranked_functions.variables, "RANKEXEC_TEST_A").result() == (
        {"RANKEXEC_TEST_A": None}
    )


def test_options_of_options(make_executor) -> None:
    """What was set before is kept; other world sizes and modes are possible."""
    executor = make_executor(2, gather=True).options(caller_rank=None).options(world_size=3)
    assert isinstance(executor, RankedExecutor)
    assert executor.submit(ranked_functions.rank).result() == [0, 1, 2]


@pytest.mark.parametrize("which", [0, 1])
def test_options_share_the_shutdown(make_executor, which) -> None:
    """Shutting one of them down is shutting all of them down."""
    both = [executor := make_executor(1), executor.options(gather=True)]
    both[which].shutdown()
    for each in both:
        with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
            each.submit(int)


def test_options_outlive_the_first(make_executor) -> None:
    """Children can be started as long as one of them is there."""
    executor = RankedExecutor(2, caller_rank=None)
    other = executor.options(gather=True)
    del executor
    gc.collect()
    assert other.submit(ranked_functions.rank).result() == [0, 1]
    other.shutdown()


# --- shutdown ---


@pytest.mark.parametrize("twice", [False, True])
def test_after_shutdown(make_executor, twice) -> None:
    """Nothing is taken any more, in the standard library's words; again is fine."""
    executor = make_executor(1)
    for _ in range(1 + twice):
        executor.shutdown()
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        executor.submit(int)
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        executor.map(int, [1])


@with_children_only
def test_shutdown_waits(make_executor) -> None:
    """When it comes back every gang is over and no process is left."""
    executor = make_executor(1, max_gangs=1)
    futures = [executor.submit(time.sleep, 0.1) for _ in range(3)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert own_processes() == []


@with_children_only
def test_shutdown_without_waiting(make_executor) -> None:
    """It comes back at once; what was submitted is finished all the same."""
    executor = make_executor(1, max_gangs=1)
    futures = [executor.submit(ranked_functions.returning, value) for value in range(3)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    assert [future.result() for future in futures] == [0, 1, 2]


@with_children_only
def test_shutdown_cancels_what_is_pending(make_executor, tmp_path) -> None:
    """With cancel_futures only gangs that run are finished."""
    executor = make_executor(1, max_gangs=1)
    running, *pending = [
        executor.submit(ranked_functions.wait_for, str(tmp_path / "end")) for _ in range(3)
    ]
    wait_until(running.running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in pending] == [True] * 2
    (tmp_path / "end").touch()
    assert running.result() > 0


def test_shutdown_broken_off(make_executor, monkeypatch) -> None:
    """A Ctrl-C while it waits comes out of it; what was started is given back nevertheless."""
    launcher = LocalLauncher()
    executor = make_executor(1, launcher=launcher)

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(executor._shared._apart, "shutdown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.shutdown()
    assert launcher._leases == 0


def test_with(make_executor) -> None:
    """`with` gives the executor, and shuts it down; gangs that run are finished."""
    with make_executor(1) as executor:
        future = executor.submit(ranked_functions.returning, 5)
    assert future.result() == 5
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        executor.submit(int)


def test_with_and_an_exception(make_executor) -> None:
    """What the block raises comes out of it, after all gangs are over."""
    futures = []

    def block() -> None:
        with make_executor(1) as executor:
            futures.append(executor.submit(ranked_functions.returning, 5))
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert futures[0].result() == 5


def test_an_executor_that_nobody_holds(make_executor, caller_rank) -> None:
    """It leaves nothing behind, and what was submitted is finished."""
    executor = RankedExecutor(2, caller_rank=caller_rank, max_gangs=1)
    futures = [executor.submit(ranked_functions.returning, value) for value in range(2)]
    del executor
    gc.collect()
    assert [future.result() for future in futures] == [0, 1]
    wait_until(lambda: not own_processes(), "no process is left")


# --- one caller's gang at a time ---


@pytest.fixture
def held_turn(make_executor):
    """Another thread is a rank, in a function named `holder`, until the test is over."""
    began, end = threading.Event(), threading.Event()

    def holder() -> None:
        began.set()
        end.wait(60)

    executor = make_executor(1, caller_rank=0)
    thread = threading.Thread(target=executor.submit, args=[holder], name="first-thread")
    thread.start()
    assert began.wait(30)
    yield end
    end.set()
    thread.join()


@with_the_caller
def test_callers_take_turns(make_executor) -> None:
    """Gangs with a caller's rank run one at a time, whichever thread asks, on which executor."""
    spans = []

    def span() -> None:
        began = time.monotonic()
        time.sleep(0.05)
        spans.append((began, time.monotonic()))

    threads = [threading.Thread(target=make_executor(1).submit, args=[span]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert len(spans) == 4


@with_the_caller
def test_a_long_wait_warns(make_executor, held_turn, monkeypatch) -> None:
    """Who waits for long is told who holds it up, at the line that submits."""
    monkeypatch.setattr(rankexec._gang.restore, "TURN_WARNING_SECONDS", 0.05)
    executor = make_executor(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threading.Timer(0.3, held_turn.set).start()
        assert executor.submit(ranked_functions.returning, 5).result() == 5
    assert caught
    assert "holder" in str(caught[0].message)
    assert "first-thread" in str(caught[0].message)
    assert caught[0].category is RuntimeWarning
    assert caught[0].filename == __file__


@with_the_caller
def test_waiting_no_longer_than_the_timeout(make_executor, held_turn) -> None:
    """`timeout` holds for the wait too."""
    future = make_executor(1, timeout=0.2).submit(int)
    with pytest.raises(GangTimeout, match=r"turn.*holder.*first-thread"):
        future.result()


@with_children_only
def test_children_wait_for_nobody(make_executor, held_turn) -> None:
    """Gangs of children run while a caller's gang does."""
    assert make_executor(2).submit(ranked_functions.rank).result() == 0
