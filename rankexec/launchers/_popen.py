"""A rank's process in the caller: what multiprocess wants of it, told by the guardian."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import FileIO
from typing import Any

import multiprocess.connection
import multiprocess.process
from multiprocess.process import BaseProcess

from rankexec._gang.call import Seat
from rankexec._gang.channel import Channel
from rankexec._gang.line import Line
from rankexec._gang.worker import STACKS_SIGNAL
from rankexec.errors import PreloadError
from rankexec.launchers import Ended, Started
from rankexec.launchers._command import command_for
from rankexec.launchers._ends import close_all, joined
from rankexec.launchers._guarded import GUARDIANS, Guardian

__all__ = ("GuardedPopen", "RankProcess")


class RankProcess(BaseProcess):  # type: ignore[misc]  # multiprocess has no types
    """A rank on this host: a multiprocess Process whose parent is the guardian."""

    def __init__(
        self,
        seat: Seat,
        environment: Mapping[str, str],
        preparation: Mapping[str, Any],
        find_guardian: Callable[[], Guardian],
        *,
        fork: bool,
        standby: bool,
    ) -> None:
        super().__init__(name=f"rank-{seat.rank}")
        self.environment = dict(environment)
        self.preparation = preparation
        self.find_guardian = find_guardian
        self.fork = fork
        self.standby = standby
        self.channel: Channel
        self.stdout: FileIO
        self.stderr: FileIO
        self.stacks: FileIO

    @staticmethod
    def _Popen(process: RankProcess) -> GuardedPopen:  # noqa: N802  # multiprocess's hook
        return GuardedPopen(process)

    @property
    def key(self) -> int:
        """What the guardian knows it by."""
        return self._popen.key  # type: ignore[no-any-return]  # untyped there

    @property
    def guardian(self) -> Guardian:
        """Its parent."""
        return self._popen.guardian  # type: ignore[no-any-return]  # untyped there

    def fileno(self) -> int:
        """Return the status line's descriptor."""
        return self._popen.sentinel  # type: ignore[no-any-return]  # untyped there

    def news(self) -> list[Started | Ended]:
        """Return what the guardian has said since the last call."""
        return self._popen.news()  # type: ignore[no-any-return]  # untyped there

    def show_stacks(self) -> None:
        """Have faulthandler in the rank write the stacks of all its threads."""
        self._popen.tell("signal", STACKS_SIGNAL)

    def close(self) -> None:
        """Close the channel and the status line; its output is closed by who reads it."""
        self.channel.close()
        self._popen.close()


class GuardedPopen:
    """What multiprocess asks of a started process, told by the guardian."""

    method = "guardian"
    _keys = itertools.count()

    def __init__(self, process: RankProcess) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self.key: int
        self.sentinel: int
        self._status: Line
        self._since = 0.0
        self._lock = threading.Lock()
        self._news: list[Started | Ended | Exception] = []
        self.guardian = process.find_guardian()
        if not (process.standby and self._take(process)):
            self._start(process)

    def _take(self, process: RankProcess) -> bool:
        """Be a rank that was forked ahead. Returns False if there is none."""
        while (offer := self.guardian.take()) is not None:
            self.key, ends = offer
            self._since = time.monotonic()  # not as long as it has been waiting
            self._hold(process, ends)
            if self._prepare(process) and not self.guardian.is_gone():
                return True
            self._drop(process)  # it was killed while it waited, or is about to be
            self.guardian.ended()
        return False

    def _start(self, process: RankProcess) -> None:
        command = None if process.fork else command_for("rankexec._gang.worker")
        self.key = next(self._keys)
        details = (self.key, command, None if process.fork else process.environment)
        ours, theirs = joined()
        self._hold(process, ours)
        try:
            try:
                self.guardian.start(theirs, *details)
            except ConnectionError:  # killed, though not dead when we looked: a new one, once
                GUARDIANS.discard(self.guardian)
                self.guardian = process.find_guardian()
                self.guardian.start(theirs, *details)
            self._prepare(process)  # if it has just died, it says so by its news
        except BaseException:
            self._drop(process)
            raise
        finally:
            close_all(theirs)

    def _hold(self, process: RankProcess, ends: list[int]) -> None:
        channel, stacks, stdout, stderr, status = ends
        process.channel = Channel(Line(channel))
        process.stacks, process.stdout, process.stderr = map(FileIO, (stacks, stdout, stderr))
        self._status = Line(status)
        self.sentinel = status

    def _prepare(self, process: RankProcess) -> bool:
        """Send the first message. Returns False if there is nobody to take it."""
        environment = process.environment if process.fork else None
        preparation = process.preparation
        if preparation["surroundings"].is_like(self.guardian.began_in):  # it has them from there
            preparation = {**preparation, "surroundings": None}
        try:
            process.channel.send("prepare", (preparation, environment))
        except ConnectionError:
            return False
        return True

    def _drop(self, process: RankProcess) -> None:
        for end in (process.channel, process.stacks, process.stdout, process.stderr, self._status):
            end.close()

    def news(self) -> list[Started | Ended]:
        self._read()
        with self._lock:
            news, self._news = self._news, []
        for item in news:
            if isinstance(item, Exception):  # it could not be started
                raise item
        return [item for item in news if not isinstance(item, Exception)]

    def poll(self, _flag: int = 0) -> int | None:
        """Return the exit code if it is known.

        Reads nothing: multiprocess calls this for all its children whenever one is started, and
        whoever watches the status line would wait for what has been read already.
        """
        return self.returncode

    def _read(self) -> None:
        with self._lock:
            while self.returncode is None and not self._status.closed and self._status.poll():
                try:
                    self._note(pickle.loads(self._status.receive()[0]))
                except (EOFError, ConnectionError):
                    # The guardian is gone, and its ranks with it.
                    self._note(Ended(None, None, 0.0))

    def _note(self, item: Started | Ended | Exception) -> None:
        if isinstance(item, Started):
            item = replace(item, when=max(item.when, self._since))
        self._news.append(item)
        if isinstance(item, Started):
            self.pid = item.pid
            self.guardian.has_ranks()
            return
        self.guardian.ended()
        exitcode = item.exitcode if isinstance(item, Ended) else None
        # The next guardian may find the module mended; and one that is just dying looks alive.
        if isinstance(item, PreloadError) or (isinstance(item, Ended) and exitcode is None):
            GUARDIANS.discard(self.guardian)
        self.returncode = 255 if exitcode is None else exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._read()
        while self.returncode is None and not self._status.closed:
            if not multiprocess.connection.wait([self.sentinel], timeout) and timeout is not None:
                return None
            self._read()
        return self.returncode

    def tell(self, kind: str, *details: Any) -> None:
        self.guardian.tell(kind, self.key, *details)

    def terminate(self) -> None:
        self.tell("signal", signal.SIGTERM)

    def kill(self) -> None:
        self.tell("kill")

    def close(self) -> None:
        with self._lock:
            self._status.close()
            if self.returncode is None:  # killed before the guardian came to start it
                self.returncode = 255
                self.guardian.ended()


def _forget_ranks() -> None:
    """In a forked process: the ranks are the parent's; multiprocess would join them at exit."""
    Channel.close_all()
    for child in list(multiprocess.process._children):
        if isinstance(child, RankProcess):
            multiprocess.process._children.discard(child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_ranks)
