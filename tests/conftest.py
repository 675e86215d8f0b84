"""Fixtures: every test leaves its process as it found it; executors in both modes."""

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from helpers import guardian_pids, run_python

from rankexec import LocalLauncher, RankedExecutor, TorchDDPCtx
from rankexec.launchers import local
from rankexec.launchers._guarded import GUARDIANS

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its jobs in the background ignore it, and so would everything that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SETTLE_SECONDS = 10.0
"""How long leftovers may take to go (a process being torn down); a bound, not a wait."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Run the tests over another launcher than the default; keep the pictures of a page."""
    choices = ["forkserver", "standby", "spawn"]
    parser.addoption("--launcher", choices=choices, default=choices[0])
    parser.addoption("--screenshots", metavar="DIR", help="where test_jupyterlab keeps pictures")


FRESH = "RANKEXEC_TESTS_FRESH"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked `fresh` in an interpreter of its own."""
    if pyfuncitem.get_closest_marker("fresh") is None or FRESH in os.environ:
        return None
    name = f"{pyfuncitem.path}::{pyfuncitem.nodeid.partition('::')[2]}"
    launcher = f"--launcher={pyfuncitem.config.getoption('--launcher')}"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", launcher, name]
    done = run_python(command, pyfuncitem.path.parent, env={FRESH: "1"}, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def _children() -> list[str]:
    guardians = guardian_pids()
    shown = []
    for process in psutil.Process().children(recursive=True):
        if process.pid in guardians:  # `_launcher` holds it; ranks that it has left are listed
            continue
        try:
            command, status = " ".join(process.cmdline()), process.status()
        except psutil.Error:  # it has just ended
            continue
        if "resource_tracker" not in command:
            shown.append(f"{process.pid} {status} {command[:200]}")
    return shown


def _descriptors() -> Counter[str]:
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        kinds[target.split(":")[0] if ":[" in target else target] += 1
    return kinds


class _State:
    """What a test must leave as it was."""

    def __init__(self) -> None:
        gc.collect()
        self.children = _children()
        # pytest-timeout's own thread is named after its test, and may not stand yet, or any more.
        names = (t.name for t in threading.enumerate())
        self.threads = sorted(name for name in names if not name.startswith("pytest_timeout"))
        self.descriptors = _descriptors()
        self.descriptors["socket"] -= 2 * len(GUARDIANS._by_key)  # kept by `_launcher`
        # Named semaphores come and go with other programs of this host (another run of these tests,
        # say); ranks' own, for DataLoader workers, have no name for long.
        self.shared_memory = sorted(n for n in os.listdir("/dev/shm") if not n.startswith("sem."))
        self.environ = dict(os.environ)
        self.handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
        self.faulthandler = faulthandler.is_enabled()
        self.main = sys.modules["__main__"]
        self.cwd = os.getcwd()
        self.path = list(sys.path)
        self.wakeup_fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self.wakeup_fd)

    def more_than(self, before: _State) -> dict[str, Any]:
        """Return what is here and was not there; changed values too."""
        found: dict[str, Any] = {
            name: (getattr(before, name), getattr(self, name))
            for name in ("threads", "handlers", "faulthandler", "cwd", "wakeup_fd")
            if getattr(self, name) != getattr(before, name)
        }
        # Only what is new: other programs of this host (another run of these tests) come and go.
        if more := sorted(set(self.shared_memory) - set(before.shared_memory)):
            found["shared memory"] = more
        if self.children:
            found["children"] = self.children
        if more := self.descriptors - before.descriptors:
            found["descriptors"] = more
        # torch._inductor sets the second one when it is imported, for good.
        ignored = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
        for name in (self.environ.keys() | before.environ.keys()) - ignored:
            if self.environ.get(name) != before.environ.get(name):
                found[name] = (before.environ.get(name), self.environ.get(name))
        if self.main is not before.main:
            found["__main__"] = (before.main, self.main)
        return found


@pytest.fixture(scope="session", autouse=True)
def _launcher(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the launcher under test the default; let one guardian serve all tests."""
    kind = request.config.getoption("--launcher")
    with pytest.MonkeyPatch.context() as patch:
        if kind == "spawn":
            patch.setattr(local, "_START_METHODS", ("spawn", "forkserver"))
        if kind == "standby":
            patch.setitem(LocalLauncher.__init__.__kwdefaults__, "standby", True)
        launcher = LocalLauncher(standby=False)  # or it would hold parked children
        launcher.lease()
        yield
        launcher.release()


@pytest.fixture(scope="session", autouse=True)
def _warm(_launcher: None) -> None:
    """Let libraries open once what they keep for good (torch's threads, event descriptors)."""
    if importlib.util.find_spec("torch") is not None:
        with RankedExecutor(1, ctx=TorchDDPCtx()) as executor:
            executor.submit(os.getpid).result()
    # What is here stays: `no_leftovers` collects twice a test, and should not look at it again.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail a test that leaves anything behind: see `_State`."""
    before = _State()
    yield
    limit = time.monotonic() + SETTLE_SECONDS
    while left := _State().more_than(before):
        if time.monotonic() > limit:
            pytest.fail(f"left behind: {left}")
        time.sleep(0.02)


@pytest.fixture(params=[0, None], ids=["caller_rank=0", "caller_rank=None"])
def caller_rank(request: pytest.FixtureRequest) -> int | None:
    """Both modes: the caller is a rank, or every rank is a child."""
    return request.param


@pytest.fixture
def make_executor(caller_rank: int | None) -> Iterator[Callable[..., RankedExecutor]]:
    """Make executors in the mode under test; they are shut down after it."""
    made: list[RankedExecutor] = []

    def make(world_size: int = 2, **options: Any) -> RankedExecutor:
        executor = RankedExecutor(world_size, **{"caller_rank": caller_rank, **options})
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown()


@pytest.fixture
def main(monkeypatch):
    """A `__main__` of its own, to be written to."""
    module = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module.__dict__
