"""One child of a gang, as the supervising thread sees it: its process, its pipes, its reports."""

from __future__ import annotations

import pickle
from contextlib import ExitStack, suppress
from typing import Any

from rankexec._gang.call import Raised, RankInfo
from rankexec._gang.output import OutputReader
from rankexec._gang.sinks import sink_for
from rankexec._gang.streams import Wait
from rankexec._gang.wire import Packed, unpack
from rankexec.launchers import Child, Ended

__all__ = ("Member", "unpack_raised")

_STACKS_LIMIT = 1 << 20
# By the rank itself.
_TIMES = ("ready", "context_entered", "fn_entered", "fn_left", "context_left")
_MEASURED = (*_TIMES, "peak_gpu_memory")


class Member:
    """A child and what the gang reads from it; `serve` begins each call, the first one too."""

    def __init__(self, child: Child, info: RankInfo, prefix: str) -> None:
        self.child = child
        self.info = info
        self.ready = False
        self.ended: Ended | Exception | None = None
        self.stacks = b""
        self.threads: dict[int, str] = {}
        """By ident, the names of the threads that its end waits for."""
        self._prefix = prefix
        self._closing = ExitStack()
        nowhere = sink_for(info.rank, "caller", self._closing)
        self.stdout = OutputReader(child.stdout, "stdout", nowhere)
        self.stderr = OutputReader(child.stderr, "stderr", nowhere)

    def serve(self, info: RankInfo, output: Any, wait: Wait) -> None:
        """Begin a call. Raises OSError if a file for the output cannot be made."""
        info.pid, info.started = self.info.pid, self.info.started
        self.info = info
        self.ready = False
        self.stacks = b""
        self._closing.close()
        sink = sink_for(info.rank, output, self._closing, self._prefix, wait)
        self.stdout.sink = self.stderr.sink = sink

    def send(self, kind: str, details: Any = None, packed: Packed | None = None) -> None:
        """Send a message; a rank that has died says so by its own news."""
        with suppress(ConnectionError):
            self.child.channel.send(kind, details, packed)

    def receive(self) -> tuple[str, Any, Packed | None] | None:
        """Return the next message without waiting, or None if there is no more."""
        try:
            if not self.child.channel.poll():
                return None
            return self.child.channel.receive()
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def read_output(self) -> None:
        """Pass on all output that is there, unfinished lines too."""
        self.stdout.finish()
        self.stderr.finish()

    def read_stacks(self) -> bool:
        """Read what `show_stacks` made it write. Returns whether there was anything."""
        data = b""
        with suppress(ConnectionError):  # it has died
            data = self.child.stacks.read(_STACKS_LIMIT) or b""
        self.stacks += data
        return bool(data)

    def begin(self, pid: int, when: float) -> None:
        """Take over who it is and when it began: as the launcher says, as it does; the earlier."""
        self.info.pid = pid
        self.info.started = min(when, self.info.started or when)

    def note(self, theirs: RankInfo) -> None:
        """Take over what the rank itself knows, and has measured."""
        if theirs.pid is not None and theirs.started is not None:
            self.begin(theirs.pid, theirs.started)
        for name in _MEASURED:
            if (value := getattr(theirs, name)) is not None:
                setattr(self.info, name, value)

    def end(self, ended: Ended | Exception) -> None:
        """Note that the process is gone, or could not be started."""
        self.ended = ended
        if isinstance(ended, Exception):
            return
        self.info.exitcode = ended.exitcode
        self.info.peak_memory = ended.peak_memory
        self.info.reaped = ended.when

    def is_gone(self) -> bool:
        """Return whether there is no process: any more, or yet."""
        return self.ended is not None or self.info.pid is None

    def close(self) -> None:
        """Close everything that the caller holds of this child. Its process has ended."""
        self.stdout.close()
        self.stderr.close()
        self.child.stacks.close()
        self._closing.close()
        self.child.close()


def unpack_raised(packed: Packed) -> Raised:
    """Return what a rank has said that it raised; the exception itself stays packed."""
    raised, inner = unpack(packed)  # plain text
    packed.close()
    raised.exception = inner
    return raised  # type: ignore[no-any-return]  # what a rank has packed
