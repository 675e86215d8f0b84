"""Ctrl-C between any two instructions of the caller: no device, lease, thread or turn is lost."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from helpers import wait_until
from interrupting import Interrupting

from rankexec import LocalLauncher, RankedExecutor
from rankexec._gang import descriptors, restore
from rankexec._gang.deferred import Deferred
from rankexec._slots import Slots

# The interpreter of CPython 3.11 goes round in circles when a long-lived process traces opcodes, in
# C and in a frame of a test: seen with gdb, in each of three whole runs, and never in a fresh one.
# 3.12.1 ends by SIGSEGV in its own eval loop.


def fresh(test: Callable[..., object]) -> Callable[..., object]:
    """Mark a test that traces opcodes."""
    crashes = sys.version_info[:2] == (3, 12)
    return pytest.mark.fresh(pytest.mark.skipif(crashes, reason="CPython 3.12 crashes of it")(test))


MOMENTS = 25
"""How many of thousands are tried of what takes processes, drawn with a fixed seed."""


@pytest.fixture(autouse=True)
def pythons_handler():
    """Another one may stand under a test runner."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_every_moment(function: Callable[[], object], check: Callable[[], object]) -> int:
    """Interrupt a function at every moment; check after each. Returns how many there were."""
    moment = 0
    while interrupt(moment, function):
        check()
        moment += 1
    check()
    return moment


def at_some_moments(function: Callable[[], object], check: Callable[[], object]) -> None:
    """Interrupt a function at some moments, among them the first and the last ones."""
    counting = Interrupting(1 << 40)
    counting.run(function)
    total = (1 << 40) - counting._left
    for moment in random.Random(total).sample(range(total), MOMENTS):
        interrupt(moment, function)
        check()


def interrupt(moment: int, function: Callable[[], object]) -> bool:
    """Interrupt a function; returns False if it did not take as long."""
    interrupting = Interrupting(moment)
    try:
        interrupting.run(function)
    except KeyboardInterrupt:
        assert interrupting.reached
    return interrupting.reached


@fresh
def test_devices() -> None:
    """A gang's, and a session's, are given back."""
    slots = Slots(["a", "b", "c"])

    def take() -> None:
        with slots.taken(2), slots.taken(1, for_session=True):
            pass

    def check() -> None:
        assert slots._free == ["a", "b", "c"]
        assert not slots._queue
        slots.check_reachable(3, inside=True)
        with slots.taken(3):  # and nobody stands in the way
            pass

    assert at_every_moment(take, check) > 100


def test_devices_that_are_waited_for() -> None:
    """Whoever stops waiting stands in nobody's way."""
    slots = Slots(["a"])

    main = threading.main_thread().ident

    def press() -> None:
        wait_until(lambda: slots._queue)
        signal.pthread_kill(main, signal.SIGINT)

    pressing = threading.Thread(target=press)
    with slots.taken(1):
        pressing.start()
        with pytest.raises(KeyboardInterrupt), slots.taken(1):
            pass
    pressing.join()
    assert (slots._free, list(slots._queue)) == (["a"], [])


def test_devices_of_many_threads() -> None:
    """Counts of holders are exact, whoever comes at the same time."""
    slots = Slots(["a", "b", "c"])
    together = threading.Barrier(8)
    seen: list[int] = []

    def use(seed: int) -> None:
        draw = random.Random(seed)
        together.wait()
        for _ in range(200):
            with slots.taken(draw.choice([1, 1, 2, 3]), for_session=draw.random() < 0.5) as mine:
                seen.append(len(mine or ()))
                slots.check_reachable(0, inside=True)

    threads = [threading.Thread(target=use, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1600
    assert (slots._free, slots._held, list(slots._queue)) == (["a", "b", "c"], set(), [])


@fresh
def test_turn() -> None:
    """The next gang with a caller's rank gets its turn."""

    def take() -> None:
        with Deferred(), restore.turn("a test", None):  # as gangs do, see `run_here`
            pass

    def check() -> None:
        assert not restore._turn.lock.locked()
        assert restore._turn.thread is None

    assert at_every_moment(take, check) > 30


@fresh
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see below
@pytest.mark.parametrize("caller_rank", [0, None])
def test_submit_and_shutdown(caller_rank) -> None:
    """Every lease is given back, and the executor runs its next gang."""
    launcher = LocalLauncher()
    executor = RankedExecutor(1, caller_rank=caller_rank, devices=["a"], launcher=launcher)
    end, other = multiprocessing.Pipe()

    def check() -> None:
        assert descriptors.beside() is None
        assert multiprocessing.context.get_spawning_popen() is None
        assert executor.submit(int).result() == 0
        wait_until(lambda: launcher._leases == 1, "leases of gangs")
        wait_until(lambda: executor._shared.slots._free == ["a"], "the device")
        wait_until(lambda: not any(pool._ends for pool in executor._shared._pools), "gangs")

    with executor, end, other:
        at_some_moments(lambda: executor.submit(id, end).result(), check)
    assert launcher._leases == 0


# Python drops what is raised in the callback of a weak reference, and says so.
@fresh
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("caller_rank", [0, None])
def test_an_executors_life(caller_rank) -> None:
    """From its making to its end; `no_leftovers` sees the rest."""
    launcher = LocalLauncher()

    def live() -> None:
        with RankedExecutor(1, caller_rank=caller_rank, launcher=launcher) as executor:
            executor.submit(int).result()

    at_some_moments(live, lambda: wait_until(lambda: launcher._leases == 0, "leases"))


@fresh
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("caller_rank", [0, None])
def test_a_sessions_life(caller_rank) -> None:
    """As an executor's; its devices are free for the next gang."""
    with RankedExecutor(1, caller_rank=caller_rank, devices=["a"]) as executor:

        def live() -> None:
            with executor.session() as session:
                session.submit(int).result()

        at_some_moments(live, lambda: executor.submit(int).result())


def test_what_came_before_there_was_a_wait() -> None:
    """A wait inside hears it, though it came to the outer one."""

    def wait_inside() -> None:
        with Deferred():
            signal.raise_signal(signal.SIGINT)
            with Deferred() as inner:
                inner.wait([Future()])

    with pytest.raises(KeyboardInterrupt):
        wait_inside()


class Hangs:
    """Something of the user's whose pickling does not end."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGINT)
        time.sleep(600)
        return Hangs, ()


@pytest.mark.parametrize("on", ["executor", "session"])
def test_pickling_that_hangs(on) -> None:
    """It is the user's code, and Ctrl-C ends it."""
    with RankedExecutor(2, caller_rank=None) as executor:
        runs = executor if on == "executor" else executor.session()
        with pytest.raises(KeyboardInterrupt):
            runs.submit(id, Hangs())
        assert runs.submit(int).result() == 0


def test_what_has_come_meanwhile() -> None:
    """It is for the handler that stood before; one inside another is for the outermost."""
    reached = []

    def interrupt_inside() -> None:
        with Deferred():
            with Deferred():
                signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupt_inside()
    assert reached

    arrived = []

    def handler(number: int, _frame: object) -> None:
        arrived.append(number)

    signal.signal(signal.SIGINT, handler)
    with Deferred():  # the user's is never replaced
        signal.raise_signal(signal.SIGINT)
        assert arrived == [signal.SIGINT]
