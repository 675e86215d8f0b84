"""Sessions in a process group: made once, and made anew after a failure in the same processes."""

from __future__ import annotations

import os
import signal
from functools import partial

import faulty_ranks
import pytest
from faulty_ranks import all_reduce, one_does
from helpers import Marks, running_script, wait_until, with_the_caller
from test_faults_torch import no_group_left  # noqa: F401  # a fixture
from test_interrupts import interrupted  # noqa: F401  # a fixture
from test_session import main_as_before, open_session, pids  # noqa: F401  # fixtures

from rankexec import GangTimeout, RankDied, RankedExecutor, SessionLost, TorchDDPCtx

torch = pytest.importorskip("torch")
# DDP imports it; what is imported while there is a group keeps that, with its threads, for good.
pytest.importorskip("torch._dynamo")

WORLD = 2


@pytest.fixture
def session(open_session):  # noqa: F811  # the fixture
    """A session of two ranks in a group."""
    return open_session(ctx=TorchDDPCtx())


def group() -> int:
    """Return which group this is in its process."""
    return id(torch.distributed.group.WORLD)


def test_one_group_for_all_calls(session):
    """It is the same object, on every rank; collectives work in each call."""
    gathering = session.options(gather=True)
    before = gathering.submit(group).result()
    for _ in range(3):
        assert session.submit(all_reduce).result() == WORLD
    assert gathering.submit(group).result() == before


@pytest.mark.parametrize("how", ["env=", "os.environ"])
def test_debug_level(make_executor, monkeypatch, how):
    """All ranks have the gang's, which torch reads on import; the caller has its own again."""
    if how == "os.environ":
        monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    env = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"} if how == "env=" else None
    executor = make_executor(WORLD, ctx=TorchDDPCtx(), gather=True, env=env)
    before = torch.distributed.get_debug_level()
    level = torch.distributed.DebugLevel.DETAIL
    # Not torch's own function: made by the pybind11 of torch 2.8, it does not travel.
    asked = executor.submit(lambda: torch.distributed.get_debug_level())  # noqa: PLW0108  # see above
    assert asked.result() == [level] * WORLD
    assert executor.submit(all_reduce).result() == [WORLD] * WORLD
    assert torch.distributed.get_debug_level() == before


def found_modes() -> tuple:
    """Return this thread's."""
    casts = [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), casts


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_calling_thread(make_executor, mode):
    """Ranks compute as the caller would, in this call and no other."""
    executor = make_executor(WORLD, gather=True)
    with executor.session() as session:
        for runs in (executor, session):
            with MODES[mode]():
                wanted = found_modes()
                assert runs.submit(found_modes).result() == [wanted] * WORLD
            assert runs.submit(found_modes).result() == [found_modes()] * WORLD


@with_the_caller
def test_the_caller_is_in_the_group_between_calls(session):
    """And a second one with it is refused; a gang of children has its own."""
    assert torch.distributed.is_initialized()
    assert "RANK" not in os.environ
    with RankedExecutor(WORLD, ctx=TorchDDPCtx()) as executor:
        error = executor.submit(all_reduce).exception()
        assert "has a default process group already" in str(error)
        apart = executor.options(caller_rank=None)
        assert apart.submit(all_reduce).result() == WORLD
    assert session.submit(all_reduce).result() == WORLD


@pytest.mark.parametrize("rank", [0, 1])
def test_raise_while_the_others_wait_in_a_collective(session, rank):
    """They come out of it, and the next call has a new group in the same processes."""
    before = pids(session)
    fails = partial(faulty_ranks.throw, ValueError("no"))
    for _ in range(3):
        future = session.submit(one_does, rank, fails, all_reduce)
        assert type(future.exception()) is ValueError
        assert session.submit(all_reduce).result() == WORLD
    assert pids(session) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_joins_a_collective(session, rank):
    """After the timeout both are broken off: the one that waits in C++, and the one that sleeps."""
    before = pids(session)
    limited = session.options(timeout=1)
    error = limited.submit(one_does, rank, all_reduce, faulty_ranks.hang).exception()
    assert isinstance(error, GangTimeout)
    assert session.submit(all_reduce).result() == WORLD
    assert pids(session) == before


def test_all_wait_for_what_never_comes(session):
    """In a store's wait: their sockets are shut."""
    before = pids(session)
    error = session.options(timeout=1).submit(faulty_ranks.wait_for_key).exception()
    assert isinstance(error, GangTimeout)
    assert session.submit(all_reduce).result() == WORLD
    assert pids(session) == before


def test_a_rank_that_dies_in_a_collective(session):
    """The other comes back; after `restart` there is a group again."""
    dies = partial(faulty_ranks.die_of, signal.SIGKILL)
    assert isinstance(session.submit(one_does, 1, dies, all_reduce).exception(), RankDied)
    with pytest.raises(SessionLost):
        session.submit(all_reduce)
    session.restart()
    assert session.submit(all_reduce).result() == WORLD


def test_training_goes_on_from_call_to_call(session):
    """A model, its wrapper and its optimizer live on the ranks; nothing of them travels."""
    session.options(output="caller").submit(faulty_ranks.set_up_training).result()
    losses = [session.submit(faulty_ranks.train_a_little).result() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    weights = session.options(gather=True).submit(faulty_ranks.finish_training).result()
    assert weights[0] == weights[1]


def test_a_group_that_a_call_makes_by_itself(open_session):  # noqa: F811  # the fixture
    """It stays for later calls, and goes with the session."""
    session = open_session()
    session.submit(faulty_ranks.join_by_itself).result()
    assert session.submit(all_reduce).result() == WORLD
    session.close()
    assert not torch.distributed.is_initialized()


SCRIPT = """\
with RankedExecutor(2, ctx=TorchDDPCtx()) as executor, executor.session() as session:
    pids = session.options(gather=True).submit(os.getpid).result()
    try:
        session.submit({call}).result()
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
    print(session.submit(all_reduce).result())
    print(session.options(gather=True).submit(os.getpid).result() == pids)
"""


@pytest.mark.parametrize(
    "call",
    [
        "marked, marks, hang",
        "marked, marks, partial(one_does, 0, all_reduce)",
        "marked, marks, partial(one_does, 1, all_reduce)",
        "marked, marks, spin",
    ],
)
def test_ctrl_c(interrupted, call):  # noqa: F811  # the fixture
    """The call is broken off on every rank, and the session goes on with the same processes."""
    out, err = interrupted(SCRIPT.format(call=call))
    # gloo tells of its connections in torch 2.8.
    own = [line for line in out.splitlines() if "[Gloo] Rank" not in line]
    assert (own, err) == (["KeyboardInterrupt", "2.0", "True"], "")


def test_four_ranks(make_executor):
    """One fails while the others wait for it, or for each other."""
    with (
        make_executor(4, ctx=TorchDDPCtx(), timeout=100) as executor,
        executor.session() as session,
    ):
        before = pids(session)
        for rank in range(4):
            fails = partial(faulty_ranks.throw, ValueError("no"))
            future = session.submit(one_does, rank, fails, all_reduce)
            assert type(future.exception()) is ValueError
            assert session.submit(all_reduce).result() == 4
        assert pids(session) == before


def test_killed_caller(tmp_path):
    """Nothing of an idle session is left when its caller is killed."""
    marks = Marks(tmp_path / "marks")
    body = """\
with RankedExecutor(2, ctx=TorchDDPCtx()) as executor, executor.session() as session:
    session.submit(mark, marks)
    time.sleep(600)
"""
    with running_script(tmp_path, marks, body) as script:
        marks.wait_for(2)
        script.kill()
        wait_until(lambda: not marks.living())
