"""What an executor and those made by its `options` have in common: slots, launcher, threads."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rankexec._future import RankedFuture
from rankexec._gang.call import Call
from rankexec._gang.output import warn
from rankexec._map import LazyMap
from rankexec._settings import Settings
from rankexec._slots import Slots, cpu_count
from rankexec.launchers import Launcher
from rankexec.launchers.local import LocalLauncher

if TYPE_CHECKING:
    from rankexec._gang.opened import Opened
    from rankexec._gang.run import Job
    from rankexec.session import Session

__all__ = ("Shared", "check_launcher")


def check_launcher(launcher: Any) -> None:
    """Raise TypeError unless `launcher` is None or has a Launcher's methods."""
    methods = ("lease", "release", "start")
    if launcher is None:
        return
    if isinstance(launcher, type) or not all(callable(getattr(launcher, m, None)) for m in methods):
        raise TypeError(f"launcher takes a Launcher such as LocalLauncher(), got {launcher!r}")


class Shared:
    """Slots, launcher and supervising threads; open until `shutdown` or until nobody holds it.

    The threads are the standard library's pool: it queues gangs in order, and at interpreter exit
    finishes what is pending. Each holds a lease on the launcher for as long as its gang needs it.
    """

    def __init__(
        self, slots: Slots, max_gangs: int, launcher: Launcher | None, preload: Sequence[str]
    ) -> None:
        cpu_count()  # at interpreter exit, with gangs pending, it could not be imported any more
        self.slots = slots
        self.max_gangs = max_gangs
        self.launcher: Launcher = LocalLauncher() if launcher is None else launcher
        self._apart = ThreadPoolExecutor(max_gangs, "rankexec-gang")
        # Gangs with a caller's rank have a thread of their own to be supervised by: a callback of
        # another gang may submit one, from a thread of the pool above.
        self._here = ThreadPoolExecutor(1, "rankexec-caller")
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._futures: weakref.WeakSet[RankedFuture[Any]] = weakref.WeakSet()
        self._unstarted: set[LazyMap] = set()
        self._sessions: weakref.WeakSet[Opened] = weakref.WeakSet()
        self._started: weakref.WeakSet[LazyMap] = weakref.WeakSet()
        self.launcher.lease(preload)
        # As long to import as all the rest: not with rankexec, but while the launcher gets ready.
        from rankexec._gang import fresh, leaving, run

        self._run, self._fresh = run, fresh
        self._leaving = leaving.Leaving()
        self._release = weakref.finalize(self, _release, self.launcher, self._pid)
        _living.add(self)

    def check_open(self) -> None:
        """Raise RuntimeError if no more calls are taken; in the standard library's words."""
        if self._pid != os.getpid():
            raise RuntimeError("this executor was made before a fork; make one in this process")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def job(self, call: Call, settings: Settings, future: RankedFuture[Any]) -> Job:
        """Return a call on processes of its own."""
        processes = self._fresh.Fresh(
            self.slots, self.launcher, self._here, self._leaving, settings.leave_timeout
        )
        return self._run.Job(call, settings, processes, future)

    def run_here(self, job: Job) -> None:
        """Run a gang with this thread as a rank."""
        __tracebackhide__ = True
        with self._lock:
            self._futures.add(job.future)
        self._run.run_here(job)

    def run_apart(self, job: Job) -> None:
        """Queue a gang of children."""
        with self._lock:
            self.check_open()
            self._futures.add(job.future)
            self.launcher.lease()
            # The context of the submitting thread: a notebook's output finds its cell by it.
            context = contextvars.copy_context()
            self._apart.submit(context.run, _run_and_release, job, self.launcher)

    def hold(self, lazy: LazyMap) -> LazyMap:
        """Keep a lazy map until it is started; `shutdown` runs those that never were."""
        with self._lock:
            self.check_open()
            self._unstarted.add(lazy)
        return lazy

    def started(self, lazy: LazyMap) -> None:
        """Hold a lazy map no longer than its user does."""
        with self._lock:
            self._unstarted.discard(lazy)
            self._started.add(lazy)

    def opened(self, session: Session) -> Session:
        """Keep a session to be closed with the executor, while its user holds it."""
        opened = session._open  # which all that `options` makes of the session share
        opened.opener = self
        self._sessions.add(opened)
        return session

    def cancel_all(self) -> None:
        """Cancel every gang that is not finished, also those that run; end ranks that leave."""
        self._drop_maps()
        for future in self._submitted():
            future.cancel()
        self._leaving.end()

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """Take no more calls, run or cancel what is pending, then end every process."""
        if cancel_futures or not wait:
            self._drop_maps()
        for lazy in [*self._unstarted, *self._started]:
            lazy.run_rest()
        self._unstarted.clear()
        with self._lock:
            self._closed = True
        if cancel_futures:
            for future in self._submitted():
                future._cancel(even_running=False)
        # A second Ctrl-C may break off the waiting, and closing a session may raise; gangs hold
        # leases of their own.
        with ExitStack() as stack:
            stack.callback(self._release)
            for pool in (self._here, self._apart):
                stack.callback(self._finish, pool, wait=wait)
            for session in list(self._sessions):
                stack.callback(session.shutdown, wait=wait, cancel_futures=cancel_futures)

    def _finish(self, pool: ThreadPoolExecutor, *, wait: bool) -> None:
        try:
            pool.shutdown(wait=wait)
        except BaseException:  # Ctrl-C: what is waited for may be ranks that leave
            self._leaving.end()
            raise

    def _submitted(self) -> list[RankedFuture[Any]]:
        with self._lock:  # another thread may be submitting
            return list(self._futures)

    def at_exit(self) -> None:
        """At interpreter exit: close sessions; say which maps never ran, and drop them."""
        for session in list(self._sessions):
            try:
                session.close()
            except Exception as error:  # the context's own code; the others must be closed, too
                warn(f"closing a session at interpreter exit raised {error!r}")
        for lazy in [*self._unstarted, *self._started]:
            lazy.warn_dropped()
        self._unstarted.clear()

    def _drop_maps(self) -> None:
        for lazy in [*self._unstarted, *self._started]:
            lazy.close()
        self._unstarted.clear()


def _release(launcher: Launcher, pid: int) -> None:
    if pid == os.getpid():  # a forked process has no part in what its parent leases
        launcher.release()


def _run_and_release(job: Job, launcher: Launcher) -> None:
    try:
        job.processes.run_apart(job)
    finally:
        job.close()
        launcher.release()


_living: weakref.WeakSet[Shared] = weakref.WeakSet()
_exiting = False


def _at_exit() -> None:
    """Run before the standard library's pools finish their work, which they do by themselves."""
    global _exiting  # noqa: PLW0603  # the interpreter exits once
    _exiting = True
    for shared in list(_living):
        shared.at_exit()


# `atexit` would be too late: the pools' threads are joined before its functions run. The standard
# library's own pools use this hook, private as it is (3.9 to 3.14).
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # see above
