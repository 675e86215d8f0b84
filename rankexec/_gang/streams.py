"""Writing to streams of the user's: of those nothing is known but that they can `write`."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

__all__ = ("Wait", "flush", "is_stalled", "put", "wait_until")

_PIECE = getattr(select, "PIPE_BUF", 512) // 4
"""Characters that a pipe takes whole if it takes any: four bytes each, at most."""


Wait = Callable[[int, float], bool]
"""Waits until a descriptor takes something; up to a time (monotonic), or as it sees fit. Returns
whether it does."""


def wait_until(descriptor: int, limit: float) -> bool:
    """Wait so, and do nothing else meanwhile."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return bool(waiting.poll(max(0.0, limit - time.monotonic()) * 1000))


def is_stalled(stream: Any) -> bool:
    """Return whether it is full, and who writes now would wait for its reader."""
    return (descriptor := _waiting_of(stream)) is not None and not wait_until(descriptor, 0.0)


def put(stream: Any, text: str, patience: float = 0.0, wait: Wait = wait_until) -> None:
    """Write text and flush it; characters that the stream's encoding lacks become escapes.

    Args:
        stream: anything with a method `write`.
        text: any text.
        patience: the seconds that the reader of a full pipe, socket or terminal gets.
        wait: how it is waited for.

    Raises:
        Exception: whatever the stream raises; part of the text may have been written.
    """
    if (descriptor := _waiting_of(stream)) is not None:
        limit = time.monotonic() + patience
        _put_piecewise(stream, text, lambda: _wait_for(wait, descriptor, limit))
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


def _waiting_of(stream: Any) -> int | None:
    """Return the descriptor of what a write waits for, or raises where others wait (Node's)."""
    if not isinstance(stream, io.TextIOWrapper) or not hasattr(select, "poll"):
        return None
    try:
        descriptor = stream.fileno()
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor
    except (AttributeError, OSError, ValueError):  # no file; closed
        return None


def _put_piecewise(stream: io.TextIOWrapper, text: str, wait: Callable[[], None]) -> None:
    _flush_patiently(stream, wait)
    for begin in range(0, len(text), _PIECE):
        wait()  # without a buffer (python -u) what does not go at once is gone
        # Raised by the flush at a line's end: it is in the buffer, which was empty.
        with suppress(BlockingIOError):
            _write(stream, text[begin : begin + _PIECE])
        _flush_patiently(stream, wait)


def _flush_patiently(stream: io.TextIOWrapper, wait: Callable[[], None]) -> None:
    while True:
        with suppress(BlockingIOError):
            stream.flush()
            return
        wait()


def _wait_for(wait: Wait, descriptor: int, limit: float) -> None:
    if not wait(descriptor, limit):
        raise BlockingIOError(errno.EAGAIN, "it is full, and nobody reads it")
