"""A line between two processes: connected sockets that carry whole messages, and open files.

To write where nobody listens any more raises BrokenPipeError, and never SIGPIPE. A command line
program may have that signal at its default, and would die of it when a rank has died. So this is
not multiprocess's connection, which writes to a socket as to a file.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence

from rankexec._gang.sockets import NO_SIGNAL, close_all, quiet, receive_files, send_files

__all__ = ("Line",)

_HEAD = struct.Struct("!QB")
"""The bytes of the message, and the files that come with it."""
_WHOLE = 16 * 1024
"""Up to so many bytes a message is one write."""
_CHUNK = 1 << 20
_MOST_FILES = 64
"""One of our own, and boxes with 200 of the user's each."""


class Line:
    """One end. `descriptor` is a socket's, and the line's from then on."""

    def __init__(self, descriptor: int) -> None:
        self._socket = quiet(socket.socket(fileno=descriptor))
        self._socket.settimeout(None)  # the program may have set another default

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """Return the descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def send(self, data: bytes, files: Sequence[int] = ()) -> None:
        """Send a message. Raises ConnectionError if nobody can receive it any more."""
        head = _HEAD.pack(len(data), len(files))
        first, rest = (head + data, b"") if len(data) <= _WHOLE else (head, data)
        if files:
            first = first[send_files(self._socket, first, files) :]
        for part in filter(None, (first, rest)):
            self._socket.sendall(part, NO_SIGNAL)

    def receive(self) -> tuple[bytes, list[int]]:
        """Return the next message, and the files that came with it, to be closed by who takes them.

        Raises:
            EOFError: the other end is closed, or a file has not come: there are too many here.
        """
        head, files = receive_files(self._socket, _HEAD.size, _MOST_FILES)
        try:
            size, count = _HEAD.unpack(head + self._receive(_HEAD.size - len(head)))
            data = self._receive(size)
        except BaseException:
            close_all(files)
            raise
        if len(files) != count:
            close_all(files)
            raise EOFError
        return data, files

    def poll(self) -> bool:
        """Return whether a message (or the end) is there."""
        if not hasattr(select, "poll"):  # Windows, whose own takes sockets of any number
            return bool(select.select([self._socket], [], [], 0)[0])
        # Not multiprocess's `wait`, nor a selector: it is asked before each message.
        looking = select.poll()
        looking.register(self._socket, select.POLLIN)
        return bool(looking.poll(0))

    def close(self) -> None:
        """Close this end; it may be closed."""
        self._socket.close()

    def _receive(self, size: int) -> bytes:
        chunks = []
        while size:
            chunks.append(self._socket.recv(min(size, _CHUNK)))
            if not chunks[-1]:
                raise EOFError
            size -= len(chunks[-1])
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
