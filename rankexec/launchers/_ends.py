"""The two ends of what joins a rank to its caller: five descriptors each, always in this order.

channel, a socket for their messages; stacks, what the rank is doing, when it is asked; its stdout
and its stderr; status, from the guardian: what becomes of the process. All but the first are pipes.
"""

from __future__ import annotations

import os
import socket
import sys
from array import array
from collections.abc import Iterable
from contextlib import suppress

__all__ = ("DESCRIPTORS", "close_all", "joined", "offers_socket", "receive_ends", "send_ends")

DESCRIPTORS = 5
_KEY_BYTES = 64
_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # no program that is started just now inherits them


def joined() -> tuple[list[int], list[int]]:
    """Return the caller's ends, whose outputs are read without waiting, and the rank's.

    Raises OSError at the limit of descriptors, and nothing stays open then.
    """
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for own, ends in zip(socket.socketpair(), (ours, theirs), strict=True):
            ends.append(own.detach())
        while len(ours) < DESCRIPTORS:
            reader, writer = os.pipe()
            ours.append(reader)
            theirs.append(writer)
    except OSError:
        close_all([*ours, *theirs])
        raise
    for output in ours[1:4]:
        os.set_blocking(output, False)
    return ours, theirs


def close_all(descriptors: Iterable[int]) -> None:
    """Close them, whether they are open or not."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def offers_socket() -> tuple[socket.socket, socket.socket]:
    """Return a pair of sockets: ends are taken from the first, and put into the second.

    The first one is for several processes: each message is taken whole, and once.
    """
    # macOS has none of the first kind, and Linux takes no more than ten of the second.
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    pair = socket.socketpair(type=kind)
    for own in pair:
        own.setblocking(False)
    return pair


def send_ends(own: socket.socket, key: int, ends: list[int]) -> None:
    """Put a rank's ends, and the key that it is known by, into a socket that does not wait."""
    socket.send_fds(own, [str(key).encode("ascii")], ends)


def receive_ends(own: socket.socket) -> tuple[int, list[int]] | None:
    """Return what was put in first and not taken yet; None if there is nothing to be had."""
    # Not `socket.recv_fds`, which takes flags and does not pass them on.
    size = array("i").itemsize
    try:
        while True:
            key, ancillary, _, _ = own.recvmsg(
                _KEY_BYTES, socket.CMSG_LEN(DESCRIPTORS * size), _FLAGS
            )
            if not key:  # who puts them in is gone
                return None
            ends = array("i", b"".join(data[: len(data) // size * size] for *_, data in ancillary))
            if len(ends) == DESCRIPTORS:
                return int(key), list(ends)
            close_all(ends)  # at the limit of descriptors the kernel drops what is too many
    except OSError:  # nothing is there
        return None
