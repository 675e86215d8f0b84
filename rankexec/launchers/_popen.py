"""A rank's process in the caller: what multiprocess wants of it, told by the guardian."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import RawIOBase
from typing import Any

import multiprocess
import multiprocess.connection
import multiprocess.process
from multiprocess.process import BaseProcess

from rankexec._gang.call import Seat
from rankexec._gang.channel import Channel
from rankexec._gang.worker import STACKS_SIGNAL
from rankexec.errors import PreloadError
from rankexec.launchers import Ended, Started
from rankexec.launchers._guarded import GUARDIANS, Guardian, command_for

__all__ = ("GuardedPopen", "RankProcess")


class RankProcess(BaseProcess):  # type: ignore[misc]  # multiprocess has no types
    """A rank on this host: a multiprocess Process whose parent is the guardian."""

    def __init__(
        self,
        seat: Seat,
        environment: Mapping[str, str],
        find_guardian: Callable[[], Guardian],
        *,
        fork: bool,
    ) -> None:
        super().__init__(name=f"rank-{seat.rank}")
        self.environment = dict(environment)
        self.find_guardian = find_guardian
        self.fork = fork
        self.channel: Channel
        self.stdout: RawIOBase
        self.stderr: RawIOBase
        self.stacks: RawIOBase

    @staticmethod
    def _Popen(process: RankProcess) -> GuardedPopen:  # noqa: N802  # multiprocess's hook
        return GuardedPopen(process)

    def fileno(self) -> int:
        """Return the status pipe's descriptor."""
        return self._popen.sentinel  # type: ignore[no-any-return]  # untyped there

    def news(self) -> list[Started | Ended]:
        """Return what the guardian has said since the last call."""
        return self._popen.news()  # type: ignore[no-any-return]  # untyped there

    def show_stacks(self) -> None:
        """Have faulthandler in the rank write the stacks of all its threads."""
        self._popen.tell("signal", STACKS_SIGNAL)

    def close(self) -> None:
        """Close the channel and the status pipe; its output is closed by who reads it."""
        self.channel.close()
        self._popen.close()


class GuardedPopen:
    """What multiprocess asks of a started process, told by the guardian."""

    method = "guardian"
    _keys = itertools.count()

    def __init__(self, process: RankProcess) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._key = next(self._keys)
        self._lock = threading.Lock()
        self._news: list[Started | Ended | Exception] = []
        # Whatever fails, at the limit of descriptors any of these lines: nothing stays open.
        with ExitStack() as ours, ExitStack() as theirs:
            channel, its_channel = multiprocess.Pipe(duplex=True)
            theirs.callback(its_channel.close)
            process.channel = Channel(channel)
            ours.callback(process.channel.close)
            self._status, status = multiprocess.Pipe(duplex=False)
            theirs.callback(status.close)
            ours.callback(self._status.close)
            self.sentinel = self._status.fileno()
            process.stacks, stacks = _pipe(ours, theirs)
            process.stdout, stdout = _pipe(ours, theirs)
            process.stderr, stderr = _pipe(ours, theirs)
            fds = [its_channel.fileno(), stacks, stdout, stderr, status.fileno()]
            self._start(process, fds)
            ours.pop_all()

    def _start(self, process: RankProcess, fds: list[int]) -> None:
        command = None if process.fork else command_for("rankexec._gang.worker")
        details = (self._key, command, process.environment)
        try:
            self._guardian = process.find_guardian()
            self._guardian.start(fds, *details)
        except ConnectionError:  # killed, though not dead when we looked: a new one, once
            GUARDIANS.discard(self._guardian)
            self._guardian = process.find_guardian()
            self._guardian.start(fds, *details)

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
        whoever watches the status pipe would wait for what has been read already.
        """
        return self.returncode

    def _read(self) -> None:
        with self._lock:
            while self.returncode is None and not self._status.closed and self._status.poll(0):
                try:
                    self._take(pickle.loads(self._status.recv_bytes()))
                except (EOFError, ConnectionError):
                    self._take(
                        Ended(None, None, 0.0)
                    )  # the guardian is gone, and its ranks with it

    def _take(self, item: Started | Ended | Exception) -> None:
        self._news.append(item)
        if isinstance(item, Started):
            self.pid = item.pid
            self._guardian.has_ranks()
            return
        self._guardian.ended()
        exitcode = item.exitcode if isinstance(item, Ended) else None
        # The next guardian may find the module mended; and one that is just dying looks alive.
        if isinstance(item, PreloadError) or (isinstance(item, Ended) and exitcode is None):
            GUARDIANS.discard(self._guardian)
        self.returncode = 255 if exitcode is None else exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._read()
        while self.returncode is None and not self._status.closed:
            if not multiprocess.connection.wait([self.sentinel], timeout) and timeout is not None:
                return None
            self._read()
        return self.returncode

    def tell(self, kind: str, *details: Any) -> None:
        self._guardian.tell(kind, self._key, *details)

    def terminate(self) -> None:
        self.tell("signal", signal.SIGTERM)

    def kill(self) -> None:
        self.tell("kill")

    def close(self) -> None:
        with self._lock:
            self._status.close()
            if self.returncode is None:  # killed before the guardian came to start it
                self.returncode = 255
                self._guardian.ended()


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[RawIOBase, int]:
    """Return a pipe's end that is read without waiting, and the descriptor of the other."""
    reader, writer = os.pipe()
    theirs.callback(os.close, writer)
    source = open(reader, "rb", buffering=0)  # noqa: SIM115  # the gang closes it
    ours.callback(source.close)
    os.set_blocking(reader, False)
    return source, writer


def _forget_ranks() -> None:
    """In a forked process: the ranks are the parent's; multiprocess would join them at exit."""
    Channel.close_all()
    for child in list(multiprocess.process._children):
        if isinstance(child, RankProcess):
            multiprocess.process._children.discard(child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_ranks)
