"""What an executor and those made by its `options` have in common: slots, launcher, threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from rankexec import _exit
from rankexec._checks import check_started
from rankexec._future import RankedFuture, submitting
from rankexec._gang.call import Call
from rankexec._gang.deferred import Deferred, finish
from rankexec._gang.output import warn
from rankexec._map import LazyMap
from rankexec._settings import Settings
from rankexec._slots import Slots, cpu_count
from rankexec._supervisors import Supervisors
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

    Each gang holds it, and a lease on the launcher, for as long as it has processes. At interpreter
    exit what is pending is finished.
    """

    def __init__(
        self, slots: Slots, max_gangs: int, launcher: Launcher | None, preload: Any
    ) -> None:
        cpu_count()  # at interpreter exit, with gangs pending, it could not be imported any more
        self.slots = slots
        self.max_gangs = max_gangs
        self.launcher: Launcher = LocalLauncher() if launcher is None else launcher
        self._apart = Supervisors(max_gangs, "rankexec-gang")
        # Gangs with a caller's rank have a thread of their own to be supervised by: a callback of
        # another gang may submit one, from a thread of the pool above.
        self._here = Supervisors(1, "rankexec-caller")
        self._pools = (self._here, self._apart)
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._futures: weakref.WeakSet[RankedFuture[Any]] = weakref.WeakSet()
        self._unstarted: set[LazyMap] = set()
        self._sessions: weakref.WeakSet[Opened] = weakref.WeakSet()
        self._started: weakref.WeakSet[LazyMap] = weakref.WeakSet()
        with Deferred():
            self.launcher.lease(preload if isinstance(preload, tuple) else ())
            self._release = weakref.finalize(self, _release, self.launcher, self._pid)
        # As long to import as all the rest: not with rankexec, but while the launcher gets ready.
        from rankexec._gang import fresh, leaving, run

        self._run, self._fresh = run, fresh
        self._leaving = leaving.Leaving()
        _exit.at_exit(self)

    def check_open(self) -> None:
        """Raise RuntimeError if no more calls are taken; in the standard library's words."""
        check_started()
        if self._pid != os.getpid():
            raise RuntimeError("this executor was made before a fork; make one in this process")
        if _exit.is_exiting():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def submit(self, call: Call, settings: Settings) -> RankedFuture[Any]:
        """Run a call on processes of its own: with this thread as a rank, or queue it."""
        __tracebackhide__ = True
        supervise, timeout = self._supervise_here, settings.leave_timeout
        processes = self._fresh.Fresh(self.slots, self.launcher, supervise, self._leaving, timeout)
        future: RankedFuture[Any] = RankedFuture(settings.world_size)
        with submitting(future):
            job = self._run.Job(call, settings, processes, future)
            if job.try_to_pack():
                with self._lock:
                    self._futures.add(future)
                apart = settings.caller_rank is None
                (self._run_apart if apart else self._run.run_here)(job)
        return future

    def _supervise_here(
        self, end: Callable[[], object], supervise: Callable[..., object], *args: Any
    ) -> None:
        self._here.supervise(end, supervise, *args)

    def _run_apart(self, job: Job) -> None:
        __tracebackhide__ = True
        with self._lock, ExitStack() as undo:
            undo.callback(job.close)
            self.check_open()
            self.launcher.lease()
            undo.callback(self.launcher.release)
            self._apart.supervise(job.processes.end, self._run_and_release, job)
            undo.pop_all()

    def _run_and_release(self, job: Job) -> None:
        try:
            job.processes.run_apart(job)
        finally:
            job.close()
            self.launcher.release()

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

    def session(self, settings: Settings) -> Session:
        """Open a session; it is closed with the executor, while its user holds it."""
        from rankexec.session import Session  # as long to import as all the rest

        with ExitStack() as unless_it_is_had:
            with Deferred():
                session = Session(settings, self.slots, self.launcher)
                unless_it_is_had.callback(session.close)
                opened = session._open  # which all that `options` makes of the session share
                opened.opener = self
                self._sessions.add(opened)
            unless_it_is_had.pop_all()
        return session

    def cancel_all(self) -> None:
        """Cancel every gang that is not finished, also those that run, and end what is left."""
        self._drop_maps()
        for future in self._submitted():
            future.cancel()
        for session in list(self._sessions):
            session.cancel(even_running=True)
        for pool in self._pools:
            pool.end()

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """Take no more calls, run or cancel what is pending, then end every process.

        Ctrl-C meanwhile means all gangs; it comes out of this when they are over.
        """
        # Closing a session may raise, too; gangs hold leases of their own.
        with Deferred(), ExitStack() as stack:
            stack.callback(self._release)
            for pool in self._pools:
                stack.callback(pool.join, wait=wait)
            if wait:
                stack.callback(self._finish)
            for session in list(self._sessions):
                close = partial(session.shutdown, wait=wait, cancel_futures=cancel_futures)
                stack.callback(self._or_cancel_all, close)
            stack.callback(self._take_no_more, cancel_futures=cancel_futures)
            if cancel_futures or not wait:
                self._drop_maps()
            self._or_cancel_all(self._run_maps)

    def stop(self, *, kill: bool) -> None:
        """End every rank's process, cancel what has none yet, and shut down without waiting."""
        with Deferred():
            self._drop_maps()
            self._take_no_more(cancel_futures=True)
            for future in self._submitted():
                future._stop(kill=kill)
            for session in list(self._sessions):
                session.stop(kill=kill)
            if kill:  # what has returned, and is ending
                for pool in self._pools:
                    pool.end()
            self.shutdown(wait=False, cancel_futures=True)

    def _take_no_more(self, *, cancel_futures: bool) -> None:
        with self._lock:
            self._closed = True
        if cancel_futures:
            for future in self._submitted():
                future._cancel(even_running=False)

    def _or_cancel_all(self, wait: Callable[[], object]) -> None:
        """Call what waits for gangs; a Ctrl-C that comes out of it means all of them."""
        try:
            wait()
        except KeyboardInterrupt:
            self.cancel_all()
            raise

    def _finish(self) -> None:
        """Wait until the gangs are over: not a parent's, and not the one whose callback this is."""
        if self._pid == os.getpid() and not any(pool.is_here() for pool in self._pools):
            finish([over for pool in self._pools for over in pool.unfinished()], self.cancel_all)

    def _run_maps(self) -> None:
        for lazy in [*self._unstarted, *self._started]:
            lazy.run_rest()
        self._unstarted.clear()

    def _submitted(self) -> list[RankedFuture[Any]]:
        with self._lock:  # another thread may be submitting
            return list(self._futures)

    def finish_at_exit(self) -> None:
        """At interpreter exit: say which maps never ran, and drop them; finish the rest."""
        for lazy in [*self._unstarted, *self._started]:
            lazy.warn_dropped()
        self._unstarted.clear()
        with ExitStack() as stack:
            stack.callback(self._finish)
            for session in list(self._sessions):
                stack.callback(self._close_at_exit, session)

    def _close_at_exit(self, session: Opened) -> None:
        try:
            self._or_cancel_all(session.close)
        except Exception as error:  # the context's own code; the others must be closed, too
            warn(f"closing a session at interpreter exit raised {error!r}")

    def _drop_maps(self) -> None:
        for lazy in [*self._unstarted, *self._started]:
            lazy.close()
        self._unstarted.clear()


def _release(launcher: Launcher, pid: int) -> None:
    if pid == os.getpid():  # a forked process has no part in what its parent leases
        launcher.release()
