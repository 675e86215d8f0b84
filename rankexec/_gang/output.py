"""Ranks' output as it is read: whole lines. `sinks` has where they go."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import deque
from io import RawIOBase
from typing import Protocol

from rankexec._gang import streams

__all__ = ("OutputReader", "Sink", "flush", "warn")

TAIL_LINES = 20
_CHUNK = 64 * 1024
LONGEST = 1024 * 1024
"""Bytes of a line without an end that are held back; of one that is redrawn, a chunk."""


class Sink(Protocol):
    """Takes the name of a stream ("stdout", "stderr"), a line, and its end: "" if more follows."""

    def __call__(self, stream: str, line: str, end: str = "\n") -> None: ...


class OutputReader:
    """Reads one rank's stdout or stderr, which never makes it wait, and passes on whole lines."""

    def __init__(self, source: RawIOBase, stream: str, sink: Sink) -> None:
        self._source = source
        self._stream = stream
        self.sink = sink
        self._partial = bytearray()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def fileno(self) -> int:
        return self._source.fileno()

    def drain(self) -> bool:
        """Pass on what is there, without waiting. Returns whether more may come."""
        # One pass reads at most what a pipe holds: a rank that never stops printing must not keep
        # the supervising thread from seeing anything else.
        for _ in range(16):
            data = self._source.read(_CHUNK)
            if data is None:
                return True
            if not data:
                return False
            self._feed(data)
        return True

    def tail(self) -> str:
        """Return the last lines, for an error message."""
        rest = [self._text(bytes(self._partial))] if self._partial else []
        return "\n".join([*self._tail, *rest][-TAIL_LINES:])

    def finish(self) -> None:
        """Pass on what is there, and a last line that has no end."""
        self.drain()
        if self._partial:
            self._line(bytes(self._partial))
            self._partial.clear()

    def close(self) -> None:
        """Pass on the rest and close the pipe."""
        self.finish()
        self._source.close()

    def _feed(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._partial += first
        if others:
            *lines, rest = others
            for line in (bytes(self._partial), *lines):
                self._line(line)
            self._partial = bytearray(rest)
        redrawn = b"\r" in data and len(self._partial) > _CHUNK
        if redrawn or len(self._partial) > LONGEST:  # do not hoard it
            at = _last_character(self._partial)
            self._line(bytes(self._partial[:at]), "")
            del self._partial[:at]

    def _line(self, raw: bytes, end: str = "\n") -> None:
        line = self._text(raw)
        self._tail.append(line)
        self.sink(self._stream, line, end)

    @staticmethod
    def _text(raw: bytes) -> str:
        # A progress bar redraws its line with carriage returns; its last state is the line.
        return raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


def _last_character(data: bytearray) -> int:
    """Return where the last character begins, of which more bytes may be on their way."""
    at = len(data) - 1
    while at > max(0, len(data) - _CHARACTER) and data[at] in _CONTINUES:
        at -= 1
    return at


_CHARACTER = 4
_CONTINUES = range(0x80, 0xC0)
"""In UTF-8, the most bytes of one, and those that are not its first."""


def flush() -> None:
    """Flush this process's stdout and stderr, C's buffers too."""
    from rankexec._gang.libc import flush_streams  # ctypes is not for who only imports rankexec

    for name in ("stdout", "stderr"):
        with contextlib.suppress(Exception):  # closed, a broken pipe; the user's own: anything
            streams.flush(getattr(sys, name))
    flush_streams()


def warn(message: str) -> None:
    """Warn; where warnings are errors, print: a gang must be ended whatever the filters say.

    Nothing is said where nobody reads it: the gang would wait for a reader.
    """
    if streams.is_stalled(sys.stderr):
        return
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=1)
    except Exception:  # also the user's own `showwarning`, or a stderr that is closed
        with contextlib.suppress(Exception):  # there is nobody to raise to
            streams.put(sys.stderr, f"rankexec: {message}\n")
