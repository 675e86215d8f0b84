"""The guardian: a helper process, parent of all local ranks, and their end.

    python -c ... main(control, caller, offered, offers)    run by rankexec.launchers.local

    control   descriptor of a socket to the caller. Messages are pickled tuples:
              ("preload", names, later) first of all, if ranks are to be forked; while what is
                  `later` is imported, a deputy serves the caller, see `_deputy`
              ("start", key, command, environment) and a rank's ends, see `_ends`; or fork
              ("park", count, seconds, keys)    keep so many forked ahead, see `_standby`
              ("signal", key, number)   to the rank itself
              ("kill", key)             its whole tree, by force
              ("close",)                end every rank and leave
    caller    a pidfd of the caller, or -1 where the platform has none
    offered, offers    descriptors of the two ends of `_standby`'s socket
    status    one line for each rank, to the caller: Started, then Ended, or an OSError

The caller may be killed at any moment. A pipe would not tell: the caller's own forked children
(DataLoader workers) hold its ends too. The pidfd does.

No process of a rank survives it: see `_ranks`.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from rankexec._gang.libc import become_subreaper
from rankexec._gang.line import Line
from rankexec._gang.trackers import prepare_trackers
from rankexec._gang.worker import STACKS_SIGNAL
from rankexec.errors import PreloadError
from rankexec.launchers._deputy import Deputy, appoint
from rankexec.launchers._ends import close_all
from rankexec.launchers._forked import fork_rank
from rankexec.launchers._pages import huge_pages
from rankexec.launchers._preload import preload
from rankexec.launchers._ranks import Ranks, say
from rankexec.launchers._spawned import exec_rank
from rankexec.launchers._standby import Standby

__all__ = ("main",)


def main(control: int, caller: int, offered: int, offers: int) -> None:
    """Guard until the caller says "close", or is gone."""
    become_subreaper()
    # What the caller's thread has blocked came along: without SIGCHLD no rank's end would be seen.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # may have been ignored; the caller uses it
    sockets = socket.socket(fileno=offered), socket.socket(fileno=offers)
    _Guardian(Line(control), caller, sockets, None).run()
    os._exit(0)  # nothing to finalize; a preloaded module's thread would keep the process


class _Guardian:
    """The guardian; or its deputy, which has a line to its `chief`."""

    def __init__(
        self,
        control: Line,
        caller: int,
        sockets: tuple[socket.socket, socket.socket],
        chief: Line | None,
    ) -> None:
        self._control = control
        self._caller = caller
        self._starting: Line | None = None
        self._ranks = Ranks()
        prepare_trackers(self._ranks.news)  # of those who are forked from here
        self._closing = False
        self._sockets = sockets
        self._standby = Standby(*sockets, self._ranks, self._start_ahead)
        self._refusal: PreloadError | None = None
        self._deputy: Deputy | None = None
        self._chief = chief
        self._paging: Iterator[bool] = iter(())
        self._selector = selectors.DefaultSelector()
        for line in filter(None, (control, chief)):
            self._selector.register(line, selectors.EVENT_READ, partial(self._hear, line))
        if caller >= 0:
            self._selector.register(caller, selectors.EVENT_READ, self._close)
        self._wakeup, waker = socket.socketpair()
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signal)
        self._waker = waker
        for end in (self._wakeup, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        # Ranks have it from here until they have a handler: before that it would kill them.
        signal.signal(STACKS_SIGNAL, signal.SIG_IGN)
        for number in (signal.SIGCHLD, signal.SIGINT):
            # A handler, not SIG_IGN: exec would hand an ignored SIGINT down to the ranks.
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        wait: float | None = None
        while self._ranks or not self._closing:
            events = self._selector.select(wait)
            for key, _ in events:
                if key.fileobj in self._selector.get_map():  # an earlier one may have closed it
                    key.data()
            wait = 0.0 if events else self._tend()

    def _tend(self) -> float | None:
        """Do one thing that nobody waits for; return how long there is nothing more to do."""
        if (wait := self._ranks.tend()) is not None or self._closing:
            return wait
        # Not beside ranks: what they share with us would be there twice for as long as they run.
        if self._ranks.idle() and next(self._paging, False):
            return 0.0
        return self._standby.tend()

    def _hear(self, line: Line) -> None:
        try:
            data, ends = line.receive()
            kind, *details = pickle.loads(data)
            if self._deputy is not None and kind in ("signal", "kill"):
                self._deputy.tell(kind, *details)  # no two ranks of a caller have the same key
            self._obey(ends, kind, *details)
        except (EOFError, ConnectionError):
            self._close()

    def _obey(self, ends: list[int], kind: str, *details: Any) -> None:
        if kind == "start":
            self._start(ends, *details)
        elif kind == "preload":
            names, later = details
            self._preload(names)
            if later and self._refusal is None:
                self._import_later(later)
        elif kind == "park":
            self._standby.want(*details)
        elif kind == "signal":
            self._ranks.signal(*details)
        elif kind == "kill":
            self._ranks.kill(*details)
        elif kind == "relieved":
            self._hand_over()
        else:
            self._close()

    def _preload(self, names: list[str]) -> None:
        try:
            preload(names)
        except PreloadError as error:
            self._refusal = error
        self._paging = huge_pages()

    def _import_later(self, names: list[str]) -> None:
        try:
            self._deputy = deputy = appoint(self._serve_as_deputy)
        except OSError:  # nothing is left to make one with; then ranks import it themselves
            return
        self._ranks.add_deputy(deputy.pid)
        self._standby.want(*deputy.relieve(partial(preload, names)))
        self._paging = huge_pages()

    def _serve_as_deputy(self, chief: Line) -> None:
        self._close_loop()
        self._ranks.close()
        _Guardian(self._control, self._caller, self._sockets, chief).run()

    def _hand_over(self) -> None:
        """Hear no more of the caller, as the deputy that the guardian relieves."""
        if self._chief is not None and not self._closing:
            self._closing = True
            self._selector.unregister(self._control)
            self._chief.send(pickle.dumps(self._standby.hand_over()))

    def _start(
        self,
        ends: list[int],
        key: int,
        command: list[str] | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        # What is to be imported from the caller's directory is here. That may be removed, and
        # CPython 3.13 then raises SystemError for each attribute that a module has not.
        os.chdir("/")
        if command is None:
            self._bring_up(ends, key, partial(fork_rank, close=self._close_own, ahead=False))
        else:
            self._bring_up(ends, key, partial(exec_rank, command, environment, self._ranks.news))

    def _start_ahead(self, ends: list[int], key: int) -> bool:
        begin = partial(fork_rank, close=self._close_own, ahead=True)
        return self._bring_up(ends, key, begin, parked=True)

    def _bring_up(
        self, ends: list[int], key: int, begin: Callable[[list[int]], int], *, parked: bool = False
    ) -> bool:
        """Take in what `begin` starts; if it cannot, say so and return False."""
        status = self._starting = Line(ends[-1])
        try:
            if self._refusal is not None:
                raise self._refusal
            pid = begin(ends[:-1])
        except (OSError, PreloadError) as error:
            say(status, error)
            status.close()
            return False
        else:
            self._ranks.add(key, pid, status, parked=parked)
            return True
        finally:
            self._starting = None
            close_all(ends[:-1])

    def _close_own(self) -> None:
        """In a fork: close what is the guardian's."""
        self._close_loop()
        if self._starting is not None:
            self._starting.close()
        self._ranks.close()
        self._standby.close()
        self._control.close()
        for other in (self._chief, self._deputy):
            if other is not None:
                other.close()
        if self._caller >= 0:
            os.close(self._caller)

    def _close_loop(self) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup.close()
        self._waker.close()

    def _close(self) -> None:
        self._closing = True
        for fileobj in [key.fileobj for key in self._selector.get_map().values()]:
            if fileobj is not self._wakeup:
                self._selector.unregister(fileobj)
        if self._deputy is not None:
            self._deputy.tell("close")
        self._ranks.kill_all()
        self._ranks.reap()

    def _on_signal(self) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        self._ranks.reap()
        self._standby.over()
