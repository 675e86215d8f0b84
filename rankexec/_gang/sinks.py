"""Where a rank's lines go: into the caller's own streams, a file, or nowhere.

No line is lost without a word, and none because of an earlier one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rankexec._gang.output import Sink, warn
from rankexec._gang.streams import Wait, put, wait_until

__all__ = ("sink_for",)

_PATIENCE_SECONDS = 1.0
"""How long lines wait for the reader of a full pipe while no gang runs, or one is ended. Who has
not read in that time is not waited for again."""


def sink_for(
    rank: int,
    output: Any,
    stack: contextlib.ExitStack,
    prefix: str | None = None,
    wait: Wait = wait_until,
) -> Sink:
    """Return where the lines of a child go: `output` as RankedExecutor takes it."""
    if isinstance(output, os.PathLike):
        log = _Log(os.path.join(output, f"rank{rank}.log"))
        stack.callback(log.close)
        return _going_on(rank, lambda _stream: log.path, log.write)
    if output == "caller" or (output != "all" and rank not in output):
        return _nowhere
    return _prefixed(rank, f"[rank {rank}] " if prefix is None else prefix, wait)


def _nowhere(stream: str, line: str, end: str = "\n") -> None:
    pass


def _prefixed(rank: int, prefix: str, wait: Wait) -> Sink:
    patience = {"stdout": _PATIENCE_SECONDS, "stderr": _PATIENCE_SECONDS}

    def write(stream: str, line: str, end: str = "\n") -> None:  # noqa: ARG001  # a Sink
        target = getattr(sys, stream, None)
        if target is None:
            return
        seconds, patience[stream] = patience[stream], 0.0
        put(target, f"{prefix}{line}\n", seconds, wait)
        patience[stream] = _PATIENCE_SECONDS

    return _going_on(rank, "sys.{}".format, write)


def _going_on(rank: int, name_of: Callable[[str], str], write: Sink) -> Sink:
    """Return a sink that tries every line, and warns of those that are lost, once a stream."""
    warned = set()

    def sink(stream: str, line: str, end: str = "\n") -> None:
        try:
            write(stream, line, end)
        except Exception as error:  # the user's stream: it may be closed, or anything at all
            name = name_of(stream)
            if name not in warned:
                warned.add(name)
                warn(
                    f"the output of rank {rank} is lost: {name} raised {error!r}. Every line is "
                    f"tried; this is said once"
                )

    return sink


class _Log:
    """A file that lines are appended to. One that was removed is made once more."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = self._open()

    def write(self, stream: str, line: str, end: str = "\n") -> None:  # noqa: ARG002  # a Sink
        if os.fstat(self._file.fileno()).st_nlink == 0:
            removed, self._file = self._file, self._open()
            removed.close()
        data = f"{line}{end}".encode("utf-8", "backslashreplace")
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        self._file.close()

    def _open(self) -> Any:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        # No buffer: on a full disk it would have lines to write when it is closed.
        return open(self.path, "ab", buffering=0)
