"""The connection between the caller and a rank.

Everything that goes over it is one small message (a single write, so that nobody waits for the
second half of a message from a stopped process) and, if there is more to say, a few descriptors
beside it: of one file, and of what the call's own objects have open.
"""

from __future__ import annotations

import pickle
import weakref
from typing import Any, ClassVar

from rankexec._gang.line import Line
from rankexec._gang.wire import Packed

__all__ = ("Channel",)


class Channel:
    """One end of a connection between the caller and a rank: small messages, files beside them."""

    _open: ClassVar[weakref.WeakSet[Channel]] = weakref.WeakSet()

    def __init__(self, line: Line) -> None:
        self._line = line
        Channel._open.add(self)

    def fileno(self) -> int:
        return self._line.fileno()

    def send(self, kind: str, details: Any = None, packed: Packed | None = None) -> None:
        """Send one message. `details` are plain values; everything of the user's is packed."""
        carried = packed and packed.with_files([])
        self._line.send(pickle.dumps((kind, details, carried)), packed.files() if packed else [])

    def receive(self) -> tuple[str, Any, Packed | None]:
        """Return the next message's kind, details and payload. Raises EOFError at the end."""
        data, files = self._line.receive()
        kind, details, packed = pickle.loads(data)
        if files:
            packed = packed.with_files(files)
        return kind, details, packed

    def poll(self) -> bool:
        """Return whether a message (or the end) is there."""
        return self._line.poll()

    def close(self) -> None:
        self._line.close()

    @classmethod
    def close_all(cls) -> None:
        """Close every channel of this process (after a fork that should not hold them)."""
        for channel in list(cls._open):
            channel.close()
