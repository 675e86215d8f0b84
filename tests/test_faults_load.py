"""Much at once: large data, many objects, many gangs, two callers, a port that is taken."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import resource
import socket
from functools import partial

import faulty_ranks
import psutil
import pytest
import ranked_functions
from faulty_ranks import one_does, throw
from helpers import Marks, running_script, wait_until
from test_faults import WORLD, check_usable

from rankexec import GangTimeout, RankDied, TorchDDPCtx
from rankexec.launchers._guarded import GUARDIANS


def test_200_mb_argument_and_result(make_executor):
    """Large data goes there and back, whole."""
    data = os.urandom(1 << 20) * 200
    executor = make_executor(gather=True)
    results = executor.submit(ranked_functions.returning, data).result()
    assert [hashlib.sha1(result).digest() for result in results] == [
        hashlib.sha1(data).digest()
    ] * WORLD


def test_million_small_objects(make_executor):
    """So do many small ones."""
    data = [(number, str(number)) for number in range(500_000)]
    executor = make_executor(gather=True)
    assert executor.submit(ranked_functions.returning, data).result() == [data] * WORLD


class _Growth:
    """What must not grow from gang to gang, here and in the guardians."""

    def __init__(self) -> None:
        gc.collect()
        here = psutil.Process()
        guardians = [psutil.Process(g._process.pid) for g in GUARDIANS._by_key.values()]
        self.counts = {
            "processes": len(here.children(recursive=True)),
            "threads": [process.num_threads() for process in (here, *guardians)],
            "descriptors": [process.num_fds() for process in (here, *guardians)],
            "shared memory": len([n for n in os.listdir("/dev/shm") if not n.startswith("sem.")]),
        }
        self.objects = len(gc.get_objects())
        self.memory = [process.memory_info().rss for process in (here, *guardians)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_gangs_in_a_row(make_executor):
    """Whether they return, raise, die or hang: nothing grows."""
    kinds = [
        (partial(one_does, 1, int, int), type(None)),
        (partial(one_does, 1, int, int), type(None)),
        (partial(one_does, 1, int, int), type(None)),
        (partial(one_does, 1, partial(throw, ValueError())), ValueError),
        (partial(one_does, 1, partial(os._exit, 7)), RankDied),
    ]

    def run(count):
        executor = make_executor(output="caller")
        for index in range(count):
            call, error = kinds[index % len(kinds)]
            assert type(executor.submit(call).exception()) is error
        executor.shutdown()  # the last gang may still be on its way out when its future is done
        return _Growth()

    before, after = run(20), run(200)
    assert after.counts == before.counts
    assert after.objects - before.objects < 100
    for more, less in zip(after.memory, before.memory, strict=True):
        assert more - less < 6 << 20


def test_ten_timeouts_in_a_row(make_executor):
    """Nor do gangs leave anything that are ended from outside."""
    executor = make_executor(timeout=0.2)
    for _ in range(10):
        assert type(executor.submit(faulty_ranks.hang).exception()) is GangTimeout
    check_usable(executor)


@pytest.mark.parametrize("caller_rank", [0, None], ids=["caller_rank=0", "caller_rank=None"])
def test_two_callers_at_once(tmp_path, caller_rank):
    """Each has its own ports, stores and guardian; one gang's ranks die, the other's do not."""
    pytest.importorskip("torch")
    body = f"""\
        with RankedExecutor(2, caller_rank={caller_rank}, ctx=TorchDDPCtx()) as executor:
            for _ in range(3):
                print(executor.submit(all_reduce).result())
                failing = executor.submit(one_does, 1, partial(os._exit, 7), all_reduce)
                print(type(failing.exception()).__name__)
        """
    with contextlib.ExitStack() as stack:
        scripts = []
        for name in "ab":
            directory = tmp_path / name
            directory.mkdir()
            marks = Marks(directory / "marks")
            scripts.append(stack.enter_context(running_script(directory, marks, body)))
        for script in scripts:
            out, err = script.communicate(timeout=120)
            assert out == "2.0\nRankDied\n" * 3, err


def test_port_29500_taken(make_executor):
    """The port that launchers use by default is not used."""
    pytest.importorskip("torch")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        with contextlib.suppress(OSError):  # then it is taken already
            listener.bind(("127.0.0.1", 29500))
            listener.listen()
        executor = make_executor(ctx=TorchDDPCtx())
        assert executor.submit(faulty_ranks.all_reduce).result() == WORLD
        variables = executor.options(ctx=None).submit(ranked_functions.variables, "MASTER_PORT")
        assert variables.result()["MASTER_PORT"] != "29500"


def wait_for_its_end(future):
    """Wait for a gang's result, then for its processes."""
    assert future.result() == 0
    children = [info for info in future.ranks if info.pid != os.getpid()]
    wait_until(lambda: all(info.reaped for info in children), "the gang is reaped")


def test_no_descriptors_left(make_executor):
    """Wherever they run out, the gang fails of that, nothing stays open, the next works."""
    executor = make_executor()
    codes = set()
    for spare in range(30):
        wait_for_its_end(executor.submit(int))
        with few_descriptors(spare):
            error = executor.submit(int).exception()
        assert isinstance(error, OSError | None)
        codes.add(error and error.errno)
        del error  # it holds its traceback, which holds what was half made
    assert codes == {None, errno.EMFILE}


@contextlib.contextmanager
def few_descriptors(spare):
    """Let this process open so many more, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        free = [os.dup(0) for _ in range(spare)]
        with contextlib.suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(0))
        for descriptor in free:
            os.close(descriptor)
        yield
