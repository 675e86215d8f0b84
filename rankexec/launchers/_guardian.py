"""The guardian: a helper process, parent of all local ranks, and their end.

    python -c ... main(control, caller, offered, offers)    run by rankexec.launchers.local

    control   descriptor of a socket to the caller. Messages are pickled tuples:
              ("preload", names, later) first of all, if ranks are to be forked; what is `later`
                  is imported when there is nothing else to do, or before a second gang
              ("start", key, command, environment) and a rank's ends, see `_ends`; without a
                  command, fork
              ("park", count, seconds, keys)    keep so many forked ahead, see `_standby`
              ("signal", key, number)   to the rank itself
              ("kill", key)             its whole tree, by force
              ("close",)                end every rank and leave
    caller    a pidfd of the caller, or -1 where the platform has none
    offered   descriptors of the two ends of `_standby`'s socket
    offers
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
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from rankexec._gang.libc import become_subreaper
from rankexec._gang.line import Line
from rankexec._gang.trackers import prepare_trackers
from rankexec._gang.worker import STACKS_SIGNAL
from rankexec.errors import PreloadError
from rankexec.launchers._ends import close_all
from rankexec.launchers._forked import fork_rank
from rankexec.launchers._pages import huge_pages
from rankexec.launchers._preload import parts_of, preload
from rankexec.launchers._ranks import Ranks, say
from rankexec.launchers._standby import Standby

__all__ = ("main",)


def main(control: int, caller: int, offered: int, offers: int) -> None:
    """Guard until the caller says "close", or is gone."""
    become_subreaper()
    # What the caller's thread has blocked came along: without SIGCHLD no rank's end would be seen.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sockets = (socket.socket(fileno=descriptor) for descriptor in (offered, offers))
    _Guardian(Line(control), caller, *sockets).run()
    os._exit(0)  # nothing to finalize; a preloaded module's thread would keep the process


class _Guardian:
    def __init__(
        self, control: Line, caller: int, offered: socket.socket, offers: socket.socket
    ) -> None:
        self._control = control
        self._caller = caller
        self._starting: Line | None = None
        self._ranks = Ranks()
        prepare_trackers(self._ranks.news)  # of those who are forked from here
        self._closing = False
        self._standby = Standby(offered, offers, self._ranks, self._start_ahead)
        self._refusal: PreloadError | None = None
        self._later: list[str] = []
        self._started = False
        self._late = False
        """Whether something was imported later although ranks had been started."""
        self._paging: Iterator[bool] = iter(())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._on_message)
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
                key.data()
            wait = 0.0 if events else self._tend()

    def _tend(self) -> float | None:
        """Do one thing that nobody waits for; return how long there is nothing more to do."""
        if (wait := self._ranks.tend()) is not None or self._closing:
            return wait
        if self._later:
            self._late = self._started
            self._preload([self._later.pop(0)])
            return 0.0
        # Not beside ranks: what they share with us would be there twice for as long as they run.
        if self._ranks.idle() and next(self._paging, False):
            return 0.0
        return self._standby.tend()

    def _on_message(self) -> None:
        if self._closing:
            return
        try:
            data, ends = self._control.receive()
            self._obey(ends, *pickle.loads(data))
        except (EOFError, ConnectionError):
            self._close()

    def _obey(self, ends: list[int], kind: str, *details: Any) -> None:
        if kind == "start":
            self._start(ends, *details)
        elif kind == "preload":
            names, later = details
            self._preload(names)
            self._later = [part for name in later for part in parts_of(name)]
        elif kind == "park":
            self._standby.want(*details)
        elif kind == "signal":
            self._ranks.signal(*details)
        elif kind == "kill":
            self._ranks.kill(*details)
        else:
            self._close()

    def _preload(self, names: list[str]) -> None:
        try:
            preload(names)
        except PreloadError as error:
            self._refusal = error
        self._paging = huge_pages()

    def _catch_up(self) -> None:
        """Import what is left, if that has begun beside a gang, before another gang starts.

        The first one does not wait for it; but no rank's end is heard meanwhile, and in parts it
        would go on beside gang after gang.
        """
        self._started = True
        if self._late and self._later:
            rest, self._later = self._later, []
            self._preload(rest)

    def _start(
        self,
        ends: list[int],
        key: int,
        command: list[str] | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        self._catch_up()
        # What is to be imported from the caller's directory is here. That may be removed, and
        # CPython 3.13 then raises SystemError for each attribute that a module has not.
        os.chdir("/")
        if command is None:
            self._bring_up(ends, key, partial(fork_rank, close=self._close_own, ahead=False))
        else:
            self._bring_up(ends, key, partial(_exec, command, environment, self._ranks.news))

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
        signal.set_wakeup_fd(-1)
        if self._starting is not None:
            self._starting.close()
        self._ranks.close()
        self._standby.close()
        self._selector.close()
        self._control.close()
        self._wakeup.close()
        self._waker.close()
        if self._caller >= 0:
            os.close(self._caller)

    def _close(self) -> None:
        self._closing = True
        for fileobj in [key.fileobj for key in self._selector.get_map().values()]:
            if fileobj is not self._wakeup:
                self._selector.unregister(fileobj)
        self._ranks.kill_all()
        self._ranks.reap()

    def _on_signal(self) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        self._ranks.reap()
        self._standby.over()


def _exec(command: list[str], environment: Any, news: int, ends: list[int]) -> int:
    """Start a fresh interpreter; return its pid."""
    channel, stacks, stdout, stderr = ends
    process = subprocess.Popen(
        [*command[:-1], *map(str, (channel, stacks, os.getpid(), news)), command[-1]],
        env=environment,
        pass_fds=(channel, stacks, news),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    process.returncode = 0  # the guardian reaps it, with its resource usage
    return process.pid
