"""What multiprocessing shares between processes, on ranks: of both twins, of every start method."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import resource
import socket
from types import SimpleNamespace
from typing import Any

import multiprocess
import pytest
from helpers import keep_what_twins_keep, with_children_only
from test_wire import round_trip

from rankexec import NotShippable
from rankexec._gang import descriptors, sockets
from rankexec._gang.call import Call
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import pack_result, unpack

SECONDS = 30


@pytest.fixture(scope="module", autouse=True)
def _kept() -> None:
    keep_what_twins_keep()


@pytest.fixture(params=[multiprocessing, multiprocess], ids=["multiprocessing", "multiprocess"])
def twin(request) -> Any:
    """The standard library's, and the one with dill."""
    return request.param


@pytest.fixture(params=["spawn", "forkserver"])
def context(request, twin) -> Any:
    """What things are made by."""
    return twin.get_context(request.param)


def rank() -> int:
    """Return this process's rank."""
    return int(os.environ["RANK"])


def use_all(things: SimpleNamespace) -> bool:
    """Use one of each kind, with the other rank."""
    with things.lock, things.rlock, things.semaphore, things.bounded:
        things.raw.value += 1
    with things.value.get_lock():
        things.value.value += 10
    things.array[rank()] = rank() + 5
    things.raw_array[rank()] = rank() + 7
    things.barrier.wait(SECONDS)
    things.queue.put(rank())
    things.simple.put(rank())
    things.pipe.send(rank())
    things.joinable.get(timeout=SECONDS)
    things.joinable.task_done()
    with things.condition:
        things.condition.notify_all()
    return things.event.wait(SECONDS)


def test_every_kind(make_executor, context):
    """In attributes of an argument."""
    ours, theirs = context.Pipe()
    queue, joinable = context.Queue(), context.JoinableQueue()
    things = SimpleNamespace(
        lock=context.Lock(),
        rlock=context.RLock(),
        semaphore=context.Semaphore(1),
        bounded=context.BoundedSemaphore(1),
        event=context.Event(),
        condition=context.Condition(),
        barrier=context.Barrier(2),
        value=context.Value("i", 0),
        array=context.Array("i", 2),
        raw=context.RawValue("i", 0),
        raw_array=context.RawArray("i", 2),
        queue=queue,
        simple=context.SimpleQueue(),
        joinable=joinable,
        pipe=theirs,
    )
    things.event.set()
    for item in range(2):
        joinable.put(item)
    executor = make_executor(gather=True, output="caller")
    assert executor.submit(use_all, things).result() == [True, True]
    assert sorted(queue.get(timeout=SECONDS) for _ in range(2)) == [0, 1]
    assert sorted(things.simple.get() for _ in range(2)) == [0, 1]
    assert sorted(ours.recv() for _ in range(2)) == [0, 1]
    assert (things.raw.value, things.value.value) == (2, 20)
    assert (things.array[:], things.raw_array[:]) == ([5, 6], [7, 8])
    joinable.join()
    for end in (ours, theirs):
        end.close()
    for own in (queue, joinable):
        own.close()
        own.join_thread()
    things.simple.close()


def test_as_a_global_and_in_a_session(make_executor, main):
    """A queue and an event that a notebook has made; the event is set while a call runs."""
    context = multiprocessing.get_context("spawn")
    main["stop"], main["seen"] = context.Event(), context.SimpleQueue()
    code = "def wait():\n    seen.put(1)\n    return stop.wait(30)"
    exec(code, main)
    with make_executor(caller_rank=None, gather=True).session() as session:
        for _ in range(2):
            main["stop"].clear()
            running = session.submit(main["wait"])
            assert [main["seen"].get() for _ in range(2)] == [1, 1]
            main["stop"].set()
            assert running.result() == [True, True]
    main["seen"].close()


def put(queue: Any, shared: Any, lock: Any) -> None:
    """Use a manager's things."""
    with lock:
        queue.put(rank())
        shared[rank()] = os.getpid()


def test_manager_proxies(make_executor, twin):
    """They ask for the caller's key."""
    with twin.Manager() as manager:
        queue, shared, lock = manager.Queue(), manager.dict(), manager.Lock()
        executor = make_executor(output="caller")
        executor.submit(put, queue, shared, lock).result()
        with executor.session() as session:
            session.submit(put, queue, shared, lock).result()
        assert sorted(queue.get() for _ in range(4)) == [0, 0, 1, 1]
        assert sorted(shared.keys()) == [0, 1]
        del queue, shared, lock


@with_children_only
def test_a_proxy_inside_a_proxy(make_executor):
    """It comes from the manager, which sends no key along: the rank's process has it."""
    with multiprocessing.Manager() as manager:
        outer = manager.dict()
        outer["inner"] = manager.list([1])

        def read(outer: Any) -> list[int]:
            return list(outer["inner"])

        assert make_executor(1).submit(read, outer).result() == [1]
        del outer


# --- refused ---


@pytest.mark.parametrize("kind", ["Lock", "Queue", "SimpleQueue", "Event", "Barrier", "Value"])
def test_of_forks_only(twin, kind):
    """Their semaphores have no name: nobody but a fork can reach them. It is said what to use."""
    arguments = {"Barrier": (2,), "Value": ("i", 0)}.get(kind, ())
    thing = getattr(twin.get_context("fork"), kind)(*arguments)
    with pytest.raises(
        NotShippable, match=r"argument 0 of print\(\).*only|forks, and no other"
    ) as e:
        pack_call(Call(print, (thing,), {}))
    assert 'get_context("spawn")' in str(e.value)
    assert "Manager()" in str(e.value)
    if "Queue" in kind:
        for end in (thing._reader, thing._writer):
            end.close()


def test_memory_of_forks(make_executor):
    """Has a descriptor, and so it travels: values and arrays without a lock, and pipes."""
    context = multiprocessing.get_context("fork")
    raw, (ours, theirs) = context.RawArray("i", 2), context.Pipe(duplex=False)

    def write(raw: Any, end: Any) -> None:
        raw[rank()] = 1
        end.send(rank())

    make_executor().submit(write, raw, theirs).result()
    assert raw[:] == [1, 1]
    assert sorted(ours.recv() for _ in range(2)) == [0, 1]
    ours.close()
    theirs.close()


@with_children_only
@pytest.mark.parametrize("kind", ["Lock", "Queue", "RawValue"])
def test_not_back(make_executor, kind):
    """What a rank makes ends with it."""
    arguments = ("i",) if kind == "RawValue" else ()

    def make() -> Any:
        return getattr(multiprocessing.get_context("spawn"), kind)(*arguments)

    with pytest.raises(NotShippable, match=r"result of rank 0|travels to ranks only|inheritance"):
        make_executor(1).submit(make).result()


def test_plain_ctypes():
    """Are no shared memory, and go as they did."""
    assert round_trip(ctypes.c_int(3)).value == 3


def test_without_descriptors(monkeypatch):
    """Where none can be passed, nothing that needs one travels."""
    monkeypatch.setattr(sockets, "PASSES_FILES", False)
    raw = multiprocessing.RawValue("i", 0)
    with pytest.raises(NotShippable, match=r"descriptors do not travel.*Manager"):
        pack_call(Call(print, (raw,), {}))


# --- descriptors ---


def test_many_descriptors(make_executor):
    """More than one message takes; none stays open here or is left in a session's rank."""
    count = 2 * descriptors._IN_A_BOX + 1
    pipes = [os.pipe() for _ in range(count)]
    ends = [multiprocessing.connection.Connection(reader, writable=False) for reader, _ in pipes]
    for _, writer in pipes:
        os.close(writer)

    def look(ends: Any) -> int:
        return sum(end.poll() for end in ends)  # the end of each

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    with make_executor(caller_rank=None, gather=True).session() as session:
        before = session.submit(held).result()
        assert session.submit(look, ends).result() == [count, count]
        assert session.submit(held).result() == before
    for end in ends:
        end.close()


def test_a_call_that_is_never_sent():
    """Closes what was put beside it."""
    ours, theirs = multiprocessing.Pipe()
    packed = pack_call(Call(print, (ours,), {}))
    assert len(packed.files()) == 1
    packed.close()
    ours.close()
    theirs.close()


def test_what_a_failed_packing_has_taken():
    """Is closed."""
    ours, theirs = multiprocessing.Pipe()
    with socket.socket() as own, pytest.raises(NotShippable):
        pack_call(Call(print, (ours, own), {}))
    ours.close()
    theirs.close()


def test_what_nobody_takes():
    """Is closed, and each descriptor is taken once."""
    ours, theirs = multiprocessing.Pipe()
    packed = pack_call(Call(print, (ours, theirs), {}))
    for _ in range(2):
        with descriptors.arriving(packed.boxes):
            pass
    with descriptors.arriving(packed.boxes):
        call = unpack(packed)
    packed.close()
    ours.send("x")
    assert call.args[1].recv() == "x"
    for end in (ours, theirs, *call.args):
        end.close()


def test_no_descriptors_left():
    """A rank at its limit says so, and what had come is closed."""
    ours, theirs = multiprocessing.Pipe()
    packed = pack_call(Call(print, (ours, theirs), {}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, limits[1]))
    try:
        with pytest.raises(OSError) as raised, descriptors.arriving(packed.boxes):  # noqa: PT011  # its number is what counts
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raised.value.errno == errno.EMFILE
    packed.close()
    ours.close()
    theirs.close()


def test_results_take_no_descriptors():
    """Nor does anything that is packed later in this thread."""
    pack_call(Call(print, (), {})).close()
    ours, theirs = multiprocessing.Pipe()
    with pytest.raises(TypeError, match="travels to ranks only"):
        pack_result(ours, frozenset())
    ours.close()
    theirs.close()
