"""What keeps a session open, and sees that it is closed whatever becomes of its user's object."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress

from rankexec._checks import check_outside
from rankexec._gang.deferred import Deferred
from rankexec._gang.output import warn
from rankexec._gang.standing import Standing
from rankexec._settings import Settings
from rankexec._slots import Slots
from rankexec.launchers import Launcher

__all__ = ("Opened",)


class Opened:
    """The ranks of a session, replaced by `restart`; they end when nobody holds this any more.

    Attributes:
        standing: the ranks.
        cells: how many pieces of source have been run.
        opener: the executor's part that closes this at interpreter exit; it lasts as long as this.
    """

    def __init__(self, settings: Settings, slots: Slots, launcher: Launcher) -> None:
        self.cells = 0
        self.opener: object = None
        self._made_from = (settings, slots, launcher)
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self.standing = self._start()

    def _start(self) -> Standing:
        with Deferred():
            return self._started()

    def _started(self) -> Standing:
        standing = Standing(*self._made_from)
        self._finalizer = weakref.finalize(self, _close_later, standing, self._made_from[1])
        # At interpreter exit the executors close their sessions, while threads can still be waited
        # for; an exit function would come too late.
        self._finalizer.atexit = False
        try:
            standing.enter()
        except BaseException:
            self._finalizer.detach()
            with suppress(Exception):  # what counts is why the ranks were not entered
                standing.close()
            raise
        return standing

    def checked(self) -> Standing:
        """Return the ranks. Raises if they take no more calls."""
        if self._pid != os.getpid():
            raise RuntimeError("this session was made before a fork; make one in this process")
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.standing.check_alive()
        return self.standing

    def _check_outside(self) -> None:
        """Raise RuntimeError in a rank: its own end would wait for it."""
        if self._pid == os.getpid():
            check_outside(self._made_from[0].caller_rank)

    def restart(self) -> None:
        """End the ranks and start others."""
        self._check_outside()
        with Deferred() as deferred, deferred.locked(self._lock):
            if self._closed:
                raise RuntimeError("cannot restart a session after shutdown")
            self._finalizer.detach()
            try:
                self.standing.close()
            except Exception as error:  # the context's own code; these ranks are no longer wanted
                warn(f"leaving the context of a session that is restarted raised {error!r}")
            self.standing = self._start()

    def close(self) -> None:
        """End the ranks for good; once more does nothing."""
        self._check_outside()
        self._closed = True
        if self.standing.watch.is_here():  # a callback; who holds the lock may wait for this thread
            self.standing.close()
            return
        with Deferred() as deferred, deferred.locked(self._lock):
            self._finalizer.detach()
            self.standing.close()

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """End the ranks for good, as an executor's `shutdown` does."""
        self._check_outside()
        self._closed = True
        if cancel_futures:
            self.cancel(even_running=False)
        if wait:
            self.close()
        else:
            threading.Thread(target=self.close, name="rankexec-close").start()

    def stop(self, *, kill: bool) -> None:
        """End the ranks' processes, and cancel what is pending; a call that runs fails of it."""
        self._closed = True
        self.cancel(even_running=False)
        self.standing.watch.stop(kill=kill)

    def cancel(self, *, even_running: bool) -> None:
        """Cancel the calls that are pending, or run."""
        self.standing.watch.cancel(even_running=even_running)


def _close_later(standing: Standing, slots: Slots) -> None:
    """Close, in a thread: this is a garbage collection, anywhere and in any thread."""
    slots.given_up(standing.devices)
    with suppress(RuntimeError):  # no thread to be had: the interpreter is exiting, and closes it
        threading.Thread(target=standing.close, name="rankexec-close").start()
