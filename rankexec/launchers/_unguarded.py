"""Ranks without a guardian: the caller's own processes, where it cannot hand down descriptors.

That is Windows. What is here works everywhere, with less: it needs threads of the caller to read
the ranks' output, and nobody finds what a rank that died had started. A rank's connections come
over the loopback, each with a token of its own that the rank got through its stdin.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import IO, Any

from loky.backend.utils import kill_process_tree

from rankexec._gang.call import Seat
from rankexec._gang.channel import Channel
from rankexec._gang.line import Line
from rankexec._gang.sockets import NO_SIGNAL, close_all
from rankexec._gang.worker import TOKEN_BYTES
from rankexec.launchers import Ended, Started
from rankexec.launchers._command import command_for

__all__ = ("UnguardedRank", "kill_all", "start_unguarded")

CONNECT_SECONDS = 60.0
"""How long an interpreter may take to start, before its gang fails."""
_TOKEN_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_DRAIN_SECONDS = 1.0
_CHUNK = 64 * 1024


class UnguardedRank:
    """A rank's process, seen from its parent, the caller."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, line: socket.socket
    ) -> None:
        self.channel = Channel(Line(channel.detach()))
        self._asking = line.dup()
        self.stacks = _stream(line)
        self._process = process
        self._news: list[Started | Ended] = [Started(process.pid, time.monotonic())]
        self._lock = threading.Lock()
        self._told, self._tell = socket.socketpair()
        self._told.setblocking(False)
        self._tell.send(b".", NO_SIGNAL)  # there is news: it has started
        self.stdout, pump_stdout = _pumped(process.stdout)
        self.stderr, pump_stderr = _pumped(process.stderr)
        pumps = (pump_stdout, pump_stderr)
        threading.Thread(target=self._wait, args=pumps, daemon=True, name="rankexec-end").start()
        _living.add(self)

    def fileno(self) -> int:
        """Return the descriptor of a socket that is readable when there is news."""
        return self._told.fileno()

    def news(self) -> list[Started | Ended]:
        """Return what has happened since the last call."""
        with suppress(BlockingIOError):
            self._told.recv(16)
        with self._lock:
            news, self._news = self._news, []
        return news

    def show_stacks(self) -> None:
        """Ask the thread in the rank that watches for the end of the caller."""
        with suppress(OSError):
            self._asking.send(b".", NO_SIGNAL)

    def terminate(self) -> None:
        """End it; on Windows that is by force."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and its descendants."""
        if self._process.poll() is None:  # else the pid may be somebody else's by now
            kill_process_tree(self)

    @property
    def pid(self) -> int:
        """What loky kills the tree of."""
        return self._process.pid

    def join(self) -> None:
        """Do not wait: loky calls this after a kill, and our thread tells when it is done."""

    def close(self) -> None:
        """Close the channel, and what asks and tells of news."""
        self.channel.close()
        self._asking.close()
        self._told.close()

    def _wait(self, *pumps: threading.Thread) -> None:
        exitcode = self._process.wait()
        limit = time.monotonic() + _DRAIN_SECONDS
        for pump in pumps:  # its last words; but its own children may hold the pipes open
            pump.join(max(0.0, limit - time.monotonic()))
        with self._lock:
            self._news.append(Ended(exitcode, None, time.monotonic()))
        with self._tell, suppress(OSError):  # nobody listens any more
            self._tell.send(b".", NO_SIGNAL)


_living: weakref.WeakSet[UnguardedRank] = weakref.WeakSet()


def kill_all() -> None:
    """End every rank that lives, by force."""
    for rank in list(_living):
        rank.kill()


def start_unguarded(
    seats: Sequence[Seat],
    environments: Sequence[Mapping[str, str]],
    preparation: dict[str, Any],
) -> Iterator[UnguardedRank]:
    """Start all processes, then yield each when it has connected.

    Raises:
        OSError: an interpreter cannot be started, ends or does not connect in time.
    """
    starting: list[_Starting] = []
    with closing(_Arrivals(2 * len(seats))) as arrivals:
        try:
            for environment in environments:
                starting.append(_Starting(arrivals.port, environment))  # noqa: PERF401  # each known at once
            for seat in seats:
                channel, line = (arrivals.take(starting[0], seat.rank, i) for i in range(2))
                rank = UnguardedRank(starting.pop(0).process, channel, line)
                with suppress(ConnectionError):  # it has just died, and says so by its news
                    rank.channel.send("prepare", (preparation, None))
                yield rank
        finally:
            for unused in starting:
                unused.abandon()


class _Starting:
    """A process that has yet to connect, and the tokens by which it will be known."""

    def __init__(self, port: int, environment: Mapping[str, str]) -> None:
        *command, path = command_for("rankexec._gang.worker", "main_unguarded")
        self.tokens = [secrets.token_bytes(TOKEN_BYTES) for _ in range(2)]
        reader, writer = os.pipe()
        try:
            # A pipe has room for them, and now there is certainly somebody to read it.
            os.write(writer, b"".join(self.tokens))
            self.process = subprocess.Popen(
                [*command, str(port), path],
                bufsize=0,
                env=environment,
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        finally:
            close_all((reader, writer))

    def abandon(self) -> str:
        """End it, as nobody wants it any more; return what it has said on stderr."""
        self.process.kill()
        return self.process.communicate()[1].decode("utf-8", "replace").strip()


class _Arrivals:
    """The connections that ranks make to a port of the loopback, told apart by their tokens."""

    def __init__(self, count: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=count)
        self._listener.settimeout(_LOOK_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._arrived: dict[bytes, socket.socket] = {}
        self._limit = time.monotonic() + CONNECT_SECONDS

    def close(self) -> None:
        """Take no more, and close what nobody has taken."""
        for connection in [self._listener, *self._arrived.values()]:
            connection.close()

    def take(self, starting: _Starting, rank: int, which: int) -> socket.socket:
        """Wait for a connection of a process. Raises OSError if it will not come."""
        token = starting.tokens[which]
        while token not in self._arrived:
            ended = starting.process.poll()
            if ended is not None or time.monotonic() > self._limit:
                how = "did not connect in time" if ended is None else f"ended with {ended}"
                raise OSError(f"the interpreter of rank {rank} {how}: {starting.abandon()}")
            with suppress(TimeoutError):
                self._greet(self._listener.accept()[0])
        return self._arrived.pop(token)

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(_TOKEN_SECONDS)  # anybody on this host can connect, and be silent
        token = b""
        with suppress(OSError):
            while len(token) < TOKEN_BYTES and (more := connection.recv(TOKEN_BYTES - len(token))):
                token += more
        connection.settimeout(None)
        if token in self._arrived:
            connection.close()
        else:
            self._arrived[token] = connection


def _pumped(pipe: IO[bytes] | None) -> tuple[io.RawIOBase, threading.Thread]:
    """Return what a selector takes in the pipe's place, and the thread that fills it."""
    ours, theirs = socket.socketpair()

    def pump() -> None:
        source: Any = pipe
        with source, theirs, suppress(OSError):  # nobody listens any more
            while data := source.read(_CHUNK):
                theirs.sendall(data, NO_SIGNAL)

    thread = threading.Thread(target=pump, daemon=True, name="rankexec-output")
    thread.start()
    return _stream(ours), thread


def _stream(own: socket.socket) -> io.RawIOBase:
    """Return the socket as a file that never waits; closing that closes it."""
    own.setblocking(False)
    with own:
        return own.makefile("rwb", buffering=0)
