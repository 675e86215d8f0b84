"""CPython's own tests of executors and futures, run against ours in both modes.

They come with some interpreters only. Each mixin of `test.test_concurrent_futures` becomes a
subclass for every mode; what cannot apply is skipped with its reason, all of them in `NOT_OURS`.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
import types
import unittest
import unittest.mock
from concurrent.futures import BrokenExecutor
from typing import Any

import multiprocess
import pytest
from multiprocess import resource_tracker

from rankexec import RankedExecutor, RankedFuture

theirs = pytest.importorskip("test.test_concurrent_futures", exc_type=ImportError)
support = importlib.import_module("test.support")

pytestmark = pytest.mark.slow

MIXINS = (
    "ExecutorTest",
    "ThreadPoolExecutorTest",
    "ProcessPoolExecutorTest",
    "ExecutorShutdownTest",
    "ThreadPoolShutdownTest",
    "ProcessPoolShutdownTest",
    "WaitTests",
    "ThreadPoolWaitTests",
    "AsCompletedTests",
    "ExecutorDeadlockTest",
    "InitializerMixin",
    "FailingInitializerMixin",
    "FutureTests",
)

_WORKERS = "looks into the pool's own threads or processes; here every gang has fresh ones"
_BLOCKS = "needs a future that is not done when submit returns; here the caller is a rank of it"
_THREADS = "shares a lock, an event or a list with the pool's threads; here ranks have copies"
_INTERNAL = "replaces or asks for private parts of the standard library's process pool"
_UNBROKEN = "expects the pool to break; here the error itself comes out and the executor lives on"
_KILLS = "crashes the process that runs the call, which here is the caller's own"
_UNPICKLED = "needs a result that is pickled; the caller's own never is"
_INITIALIZER = "there is no initializer: nothing of a rank outlives its call"

NOT_OURS = {
    # test: reason; with "caller_rank=0: " or "caller_rank=None: " before it, in that mode only
    "ExecutorTest.test_max_workers_negative": "there is no max_workers; see test_bad_input",
    "caller_rank=None: ThreadPoolExecutorTest.test_map_submits_without_iteration": _THREADS,
    "ThreadPoolExecutorTest.test_default_workers": "asks for the thread pool's default size",
    "ThreadPoolExecutorTest.test_saturation": _WORKERS,
    "ThreadPoolExecutorTest.test_idle_thread_reuse": _WORKERS,
    "ThreadPoolExecutorTest.test_hang_global_shutdown_lock": "tests the standard library's pools",
    "ThreadPoolExecutorTest.test_executor_map_current_future_cancel": _THREADS,
    "ProcessPoolExecutorTest.test_max_workers_too_large": "a limit of the process pool on Windows",
    "ProcessPoolExecutorTest.test_killed_child": _WORKERS,
    "ProcessPoolExecutorTest.test_traceback": _INTERNAL,
    "ProcessPoolExecutorTest.test_saturation": _WORKERS,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _WORKERS,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _WORKERS,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": _WORKERS,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _INTERNAL,
    "ProcessPoolExecutorTest.test_python_finalization_error": _INTERNAL,
    "caller_rank=0: ExecutorShutdownTest.test_cancel_futures": _BLOCKS,
    "ThreadPoolShutdownTest.test_threads_terminate": _WORKERS,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": _WORKERS,
    "ThreadPoolShutdownTest.test_del_shutdown": _WORKERS,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": _WORKERS,
    "ThreadPoolShutdownTest.test_thread_names_assigned": _WORKERS,
    "ThreadPoolShutdownTest.test_thread_names_default": _WORKERS,
    "ProcessPoolShutdownTest.test_processes_terminate": _WORKERS,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _WORKERS,
    "ProcessPoolShutdownTest.test_del_shutdown": _WORKERS,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": _WORKERS,
    "caller_rank=0: WaitTests.test_first_completed": _BLOCKS,
    "caller_rank=0: WaitTests.test_first_completed_some_already_completed": _BLOCKS,
    "caller_rank=0: WaitTests.test_first_exception": _BLOCKS,
    "caller_rank=0: WaitTests.test_first_exception_some_already_complete": _BLOCKS,
    "caller_rank=0: WaitTests.test_first_exception_one_already_failed": _BLOCKS,
    "caller_rank=0: WaitTests.test_timeout": _BLOCKS,
    "ThreadPoolWaitTests.test_pending_calls_race": _THREADS,
    "caller_rank=0: AsCompletedTests.test_future_times_out": _BLOCKS,
    "caller_rank=0: AsCompletedTests.test_zero_timeout": _BLOCKS,
    "caller_rank=0: ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker": _UNPICKLED,
    "caller_rank=0: ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker": _UNPICKLED,
    "caller_rank=0: ExecutorDeadlockTest.test_error_during_result_pickle_on_worker": _UNPICKLED,
    "caller_rank=None: ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker": _UNBROKEN,
    "ExecutorDeadlockTest.test_exit_at_task_unpickle": _UNBROKEN,
    "ExecutorDeadlockTest.test_error_at_task_unpickle": _UNBROKEN,
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": _UNBROKEN,
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": _UNBROKEN,
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": _INTERNAL,
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _INTERNAL,
    "caller_rank=0: ExecutorDeadlockTest.test_crash_during_func_exec_on_worker": _KILLS,
    "caller_rank=0: ExecutorDeadlockTest.test_shutdown_deadlock": _KILLS,
    "caller_rank=0: ExecutorDeadlockTest.test_crash_big_data": _KILLS,
    "InitializerMixin.test_initializer": _INITIALIZER,
    "FailingInitializerMixin.test_initializer": _INITIALIZER,
    "FutureTests.test_cancel": "a running gang can be cancelled here; see test_executor_futures",
}


@pytest.fixture(scope="module", autouse=True)
def _resource_tracker() -> None:
    """Start the helper process of managers and semaphores, which stays, before tests count."""
    resource_tracker.ensure_running()


# --- an executor with the arguments of the standard library's ---


class CallerIsRank0(RankedExecutor):
    """Two ranks, one of them the caller."""

    def __init__(self, max_workers: int = 5, **_pool_of_processes: Any) -> None:
        super().__init__(2, max_gangs=max_workers, output="caller")


class CallerIsAlone(RankedExecutor):
    """The same for tests of a hundred calls: nothing of what they test depends on the ranks."""

    def __init__(self, max_workers: int = 5, **_pool_of_processes: Any) -> None:
        super().__init__(1, max_gangs=max_workers)


MANY_CALLS = ("test_map_chunksize", "test_hang_issue12364")


class EveryRankIsAChild(RankedExecutor):
    """Gangs of one child."""

    def __init__(self, max_workers: int = 5, **_pool_of_processes: Any) -> None:
        super().__init__(1, caller_rank=None, max_gangs=max_workers)


MODES = {"caller_rank=0": CallerIsRank0, "caller_rank=None": EveryRankIsAChild}

PRELUDE = """
import concurrent.futures, sys
sys.path[:] = {path!r}
from rankexec import RankedExecutor
class {name}(RankedExecutor):
    __init__ = lambda self, max_workers=5: RankedExecutor.__init__(self, {options})
concurrent.futures.{name} = concurrent.futures.ThreadPoolExecutor = {name}
"""
"""Before their scripts, which import the executor from concurrent.futures."""
OPTIONS = {
    CallerIsRank0: "2, max_gangs=max_workers, output='caller'",
    CallerIsAlone: "1, max_gangs=max_workers",
    EveryRankIsAChild: "1, caller_rank=None, max_gangs=max_workers",
}


class Mode:
    """What every class of theirs gets, in front of its own bases."""

    executor_type: type[RankedExecutor] = EveryRankIsAChild

    def setUp(self) -> None:
        """Put ours where their modules name the standard library's."""
        support.environment_altered = False
        if self._testMethodName in MANY_CALLS and self.executor_type is CallerIsRank0:
            self.executor_type = CallerIsAlone
        # They expect a logger without handlers, which writes to stderr; pytest gives it one.
        self.patch(logging.getLogger("concurrent.futures"), "propagate", False)
        for module in modules():
            if hasattr(module, "BrokenProcessPool"):  # its base is what every executor may raise
                self.patch(module, "BrokenProcessPool", BrokenExecutor)
            if hasattr(module, "assert_python_ok"):
                run, prelude = module.assert_python_ok, self.prelude()
                self.patch(
                    module,
                    "assert_python_ok",
                    lambda option, code, run=run, prelude=prelude: run(option, prelude + code),
                )
        super().setUp()

    def tearDown(self) -> None:
        """Fail for what theirs only warn of: a thread left over, a child left to be reaped."""
        super().tearDown()
        if sys.version_info >= (3, 12):  # before, it also meant threads that had ended
            assert not support.environment_altered

    def patch(self, target: Any, name: str, value: Any) -> None:
        """Replace a name until the test is over."""
        patch = unittest.mock.patch.object(target, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def prelude(self) -> str:
        """Return what makes the executor under test known to a script."""
        kind = self.executor_type
        return PRELUDE.format(name=kind.__name__, path=sys.path, options=OPTIONS[kind])

    def get_context(self) -> Any:
        """Return what makes managers and semaphores for their tests of processes."""
        return multiprocess.get_context("spawn")


class Future(RankedFuture):
    """Named as theirs, for their tests of the repr."""


def create_future(
    state: str = "PENDING", exception: BaseException | None = None, result: Any = None
) -> Future:
    """Return a future of ours, as their function of this name does."""
    future = Future()
    future._state, future._exception, future._result = state, exception, result
    return future


class OurFutures(Mode):
    """The same for their tests of futures without an executor."""

    def setUp(self) -> None:
        """Put our futures in the place of theirs."""
        module = sys.modules[find("FutureTests").__module__]
        for name in dir(module):
            if name.endswith("_FUTURE"):
                made = getattr(module, name)
                ours = create_future(made._state, made._exception, made._result)
                self.patch(module, name, ours)
        self.patch(module, "Future", Future)
        self.patch(module, "create_future", create_future)
        super().setUp()


# --- one class for each mixin and mode ---


def modules() -> list[types.ModuleType]:
    """Return the modules of their tests: a package from 3.12 on, one file before."""
    names = [info.name for info in pkgutil.iter_modules(getattr(theirs, "__path__", ()))]
    return [theirs, *(importlib.import_module(f"{theirs.__name__}.{name}") for name in names)]


def find(name: str) -> Any:
    """Return a class of theirs by its name."""
    return next(vars(module)[name] for module in modules() if name in vars(module))


def own_tests(mixin: type) -> set[str]:
    """Return the names of the tests that a class of theirs has itself, not by inheritance."""
    return {name for name in vars(mixin) if name.startswith("test")}


def make(mixin: type, mode: str) -> type:
    """Return a class of theirs with our executor; inherited tests run in the class they are of."""
    bases = (Mode, mixin, find("ExecutorMixin"), find("BaseTestCase"))
    members = {"executor_type": MODES[mode]} if mode in MODES else {}
    if mixin is find("FutureTests"):
        bases = (OurFutures, mixin)
    for name in dir(mixin):
        key = f"{mixin.__name__}.{name}"
        if not name.startswith("test"):
            continue
        if name not in own_tests(mixin):
            members[name] = None
        elif reason := NOT_OURS.get(key) or NOT_OURS.get(f"{mode}: {key}"):
            members[name] = unittest.skip(reason)(lambda _self: None)
    return type(mixin.__name__, bases, {**members, "__module__": __name__})


for _name in MIXINS:
    for _mode, _executor in {**MODES, "": None}.items():
        if (_name == "FutureTests") is (_executor is None):
            _suffix = f"_{_executor.__name__}" if _executor else ""
            globals()[_name + _suffix] = make(find(_name), _mode)


@pytest.mark.skipif(not hasattr(theirs, "__path__"), reason="older tests lack some of these")
def test_table() -> None:
    """What is left out exists."""
    known = {f"{name}.{test}" for name in MIXINS for test in own_tests(find(name))}
    named = {key.rpartition(": ")[2] for key in NOT_OURS}
    assert named - known <= {"AsCompletedTests.test_zero_timeout"}, "which older Pythons have"
