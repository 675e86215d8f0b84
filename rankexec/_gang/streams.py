"""Writing to streams of the user's: of those nothing is known but that they can `write`."""

from __future__ import annotations

import errno
import io
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ("flush", "put")

_PIECE = getattr(select, "PIPE_BUF", 512) // 4
"""Characters that a pipe takes whole if it takes any: four bytes each, at most."""


def put(stream: Any, text: str, patience: float = 0.0) -> None:
    """Write text and flush it; characters that the stream's encoding lacks become escapes.

    Args:
        stream: anything with a method `write`.
        text: any text.
        patience: the seconds that a reader of a full pipe gets, where that does not wait itself.

    Raises:
        Exception: whatever the stream raises; part of the text may have been written.
    """
    if (pipe := _pipe_of(stream)) is not None:
        _put_piecewise(stream, text, pipe, time.monotonic() + patience)
        return
    _write(stream, text)
    flush(stream)


def flush(stream: Any) -> None:
    """Flush a stream, if it can be."""
    if (own := getattr(stream, "flush", None)) is not None:
        own()


def _write(stream: Any, text: str) -> None:
    refusal: UnicodeEncodeError | None = None
    for form in _forms(stream, text):
        try:
            stream.write(form)
        except UnicodeEncodeError as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal


def _forms(stream: Any, text: str) -> Iterator[str]:
    """Yield the text, then what of it the stream says that it can encode, then ASCII alone."""
    yield text
    try:
        # The error's own name will not do: of all code pages that is "charmap".
        known: str = stream.encoding
        yield text.encode(known, "backslashreplace").decode(known)
    except (AttributeError, LookupError, TypeError, UnicodeError):  # it does not say, or nonsense
        pass
    yield text.encode("ascii", "backslashreplace").decode("ascii")


def _pipe_of(stream: Any) -> int | None:
    """Return the descriptor of a file that raises where others wait, as Node makes its pipes."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    try:
        descriptor = stream.fileno()
        return None if os.get_blocking(descriptor) else descriptor
    except (AttributeError, OSError, ValueError):  # no file; closed; Windows
        return None


def _put_piecewise(stream: io.TextIOWrapper, text: str, pipe: int, limit: float) -> None:
    _flush_patiently(stream, pipe, limit)
    for begin in range(0, len(text), _PIECE):
        _wait_for(pipe, limit)  # without a buffer (python -u) what does not go at once is gone
        # Raised by the flush at a line's end: it is in the buffer, which was empty.
        with suppress(BlockingIOError):
            _write(stream, text[begin : begin + _PIECE])
        _flush_patiently(stream, pipe, limit)


def _flush_patiently(stream: io.TextIOWrapper, pipe: int, limit: float) -> None:
    while True:
        with suppress(BlockingIOError):
            stream.flush()
            return
        _wait_for(pipe, limit)


def _wait_for(pipe: int, limit: float) -> None:
    """Wait until the pipe takes something. Raises BlockingIOError if it does not in time."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLOUT)
    if not waiting.poll(max(0.0, limit - time.monotonic()) * 1000):
        raise BlockingIOError(errno.EAGAIN, "it is full, and nobody reads it")
