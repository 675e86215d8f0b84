"""Devices: a gang gets all that it needs, in turn, or waits."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

import pytest
from helpers import wait_until

from rankexec._slots import Slots, visible_gpus


class Gang:
    """A thread that takes devices and holds them until it is told to give them back."""

    def __init__(self, slots: Slots, size: int) -> None:
        self.devices: list[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(slots, size))
        waiting = len(slots._queue)
        self._thread.start()
        wait_until(lambda: self.devices or len(slots._queue) > waiting)

    def _hold(self, slots: Slots, size: int) -> None:
        with slots.taken(size) as self.devices:
            self._over.wait()

    def end(self) -> None:
        """Give the devices back."""
        self._over.set()
        self._thread.join()


@pytest.fixture
def start():
    """Start gangs; with the test they end, the first one first, so that the next can begin."""
    started = []

    def start(slots, size):
        started.append(Gang(slots, size))
        return started[-1]

    yield start
    for gang in started:
        gang.end()


def test_without_devices():
    """Ranks share the CPUs: nobody waits."""
    slots = Slots(None)
    with slots.taken(100) as first, slots.taken(100) as second:
        assert (first, second) == (None, None)


def test_devices_in_order():
    """A gang gets them in the order in which they were named, and gives them back there."""
    slots = Slots(["2", "0", "GPU-8f2e"])
    for _ in range(2):
        with slots.taken(1) as first, slots.taken(2) as second:
            assert (first, second) == (["2"], ["0", "GPU-8f2e"])
    with slots.taken(3) as devices:
        assert devices == ["2", "0", "GPU-8f2e"]


def test_given_back_in_any_order(start):
    """Whichever gang ends first: free devices keep their order."""
    slots = Slots(["0", "1", "2"])
    first, second = start(slots, 1), start(slots, 1)
    first.end()
    with slots.taken(2) as devices:
        assert devices == ["0", "2"]
    second.end()
    with slots.taken(3) as devices:
        assert devices == ["0", "1", "2"]


def test_given_back_after_a_failure():
    """A gang that failed holds nothing."""
    slots = Slots(["0"])
    with pytest.raises(KeyError), slots.taken(1):
        raise KeyError
    with slots.taken(1) as devices:
        assert devices == ["0"]


def test_all_or_nothing(start):
    """A gang that waits for two devices does not take the one that is free."""
    slots = Slots(["0", "1", "2"])
    running, waiting = start(slots, 2), start(slots, 2)
    assert waiting.devices is None
    assert slots._free == ["2"]
    running.end()
    assert wait_until(lambda: waiting.devices) == ["0", "1"]


def test_first_come_first_served(start):
    """A small gang does not overtake a large one, which would wait for ever."""
    slots = Slots(["0", "1", "2"])
    running, large, small = start(slots, 2), start(slots, 3), start(slots, 1)
    assert (large.devices, small.devices) == (None, None)
    running.end()
    assert wait_until(lambda: large.devices) == ["0", "1", "2"]
    assert small.devices is None
    large.end()
    assert wait_until(lambda: small.devices) == ["0"]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_a_session_that_outlives_the_thread_that_opened_it():
    """A thread that happens to have its ident may wait for the devices: it holds none."""
    slots = Slots(["0", "1"])
    with ExitStack() as session:
        opener = threading.Thread(
            target=lambda: session.enter_context(slots.taken(2, for_session=True))
        )
        opener.start()
        opener.join()
        refused = []

        def check():
            try:
                slots.check_reachable(1, inside=False)
            except RuntimeError as error:
                refused.append(error)

        for _ in range(100):
            later = threading.Thread(target=check)
            later.start()
            later.join()
            if later.ident == opener.ident:
                break
        else:
            pytest.skip("no thread gets an ident that another has had")
        assert not refused


def test_interrupted_wait(start):
    """Whoever gives up waiting stands in nobody's way."""
    slots = Slots(["0", "1"])
    running = start(slots, 1)

    def give_up(*_):
        behind = start(slots, 1)  # it waits behind the one that gives up now
        assert behind.devices is None
        raise InterruptedError

    def interrupt():
        wait_until(lambda: slots._queue)
        with slots._lock:  # to be had only when the main thread waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, give_up)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.raises(InterruptedError), slots.taken(2):
            pass
    finally:
        interrupter.join()
        signal.signal(signal.SIGUSR1, previous)
    wait_until(lambda: slots._free == [])
    assert not slots._queue
    running.end()


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("2, 0", ["2", "0"]),
        ("GPU-8f2e,MIG-1", ["GPU-8f2e", "MIG-1"]),
    ],
)
def test_visible_gpus(monkeypatch, chosen, names):
    """CUDA_VISIBLE_DEVICES decides, without a look at any GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == names
