"""The connection between the caller and a rank.

Everything that goes over it is one small message (a single write, so that nobody waits for the
second half of a message from a stopped process) and, if there is more to say, a few descriptors: of
one file, and of what the call's own objects have open.
"""

from __future__ import annotations

import pickle
import weakref
from typing import Any, ClassVar

from multiprocess.connection import Connection

from rankexec._gang import descriptors
from rankexec._gang.wire import Packed

__all__ = ("Channel",)


class Channel:
    """One end of a connection between the caller and a rank: small messages, files beside them."""

    _open: ClassVar[weakref.WeakSet[Channel]] = weakref.WeakSet()

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        Channel._open.add(self)

    def fileno(self) -> int:
        return self._connection.fileno()  # type: ignore[no-any-return]  # untyped there

    def send(self, kind: str, details: Any = None, packed: Packed | None = None) -> None:
        """Send one message. `details` are plain values; everything of the user's is packed."""
        files = packed.files() if packed else []
        carried = packed and packed.with_files([])
        self._connection.send_bytes(pickle.dumps((kind, details, carried, len(files))))
        if files:
            descriptors.send(self.fileno(), files)

    def receive(self) -> tuple[str, Any, Packed | None]:
        """Return the next message's kind, details and payload. Raises EOFError at the end."""
        kind, details, packed, files = pickle.loads(self._connection.recv_bytes())
        if files:  # or EOFError: the sender died between message and file
            packed = packed.with_files(descriptors.receive(self.fileno(), files))
        return kind, details, packed

    def poll(self) -> bool:
        """Return whether a message (or the end) is there."""
        return self._connection.poll(0)  # type: ignore[no-any-return]  # untyped there

    def close(self) -> None:
        self._connection.close()

    @classmethod
    def close_all(cls) -> None:
        """Close every channel of this process (after a fork that should not hold them)."""
        for channel in list(cls._open):
            channel.close()
