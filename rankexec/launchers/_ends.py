"""The two ends of what joins a rank to its caller: five descriptors each, always in this order.

channel, a socket for their messages; stacks, what the rank is doing, when it is asked; its stdout
and its stderr; status, a line from the guardian: what becomes of the process. All others are pipes.
"""

from __future__ import annotations

import os
import socket
import sys

from rankexec._gang.sockets import close_all, quiet, receive_files, send_files

__all__ = (
    "DESCRIPTORS",
    "close_all",
    "hold_standard",
    "joined",
    "offers_socket",
    "pidfd",
    "receive_ends",
    "send_ends",
)

DESCRIPTORS = 5
_KEY_BYTES = 64


def joined() -> tuple[list[int], list[int]]:
    """Return the caller's ends, whose outputs are read without waiting, and the rank's.

    Raises OSError at the limit of descriptors, and nothing stays open then.
    """
    ours: list[int] = []
    theirs: list[int] = []
    try:
        _add_line(ours, theirs)
        for _ in range(3):
            reader, writer = os.pipe()
            ours.append(reader)
            theirs.append(writer)
        _add_line(ours, theirs)  # not a pipe: to write to that may raise SIGPIPE
    except OSError:
        close_all([*ours, *theirs])
        raise
    for output in ours[1:4]:
        os.set_blocking(output, False)
    return ours, theirs


def _add_line(ours: list[int], theirs: list[int]) -> None:
    for own, ends in zip(socket.socketpair(), (ours, theirs), strict=True):
        ends.append(own.detach())


def offers_socket() -> tuple[socket.socket, socket.socket]:
    """Return a pair of sockets: ends are taken from the first, and put into the second.

    The first one is for several processes: each message is taken whole, and once.
    """
    # macOS has none of the first kind, and Linux takes no more than ten of the second.
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    pair = socket.socketpair(type=kind)
    for own in pair:
        quiet(own).setblocking(False)
    return pair


def send_ends(own: socket.socket, key: int, ends: list[int]) -> None:
    """Put a rank's ends, and the key that it is known by, into a socket that does not wait."""
    send_files(own, str(key).encode("ascii"), ends)


def receive_ends(own: socket.socket) -> tuple[int, list[int]] | None:
    """Return what was put in first and not taken yet; None if there is nothing to be had."""
    try:
        while True:
            key, ends = receive_files(own, _KEY_BYTES, DESCRIPTORS)
            if not key:  # who puts them in is gone
                return None
            if len(ends) == DESCRIPTORS:
                return int(key), ends
            close_all(ends)
    except OSError:  # nothing is there
        return None


def pidfd(pid: int) -> int:
    """Return a descriptor that tells of a process's end; -1 if the kernel has no such.

    The function may be there and fail: before Linux 5.3, under gVisor, in containers whose seccomp
    profile does not know the call.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def hold_standard() -> None:
    """Have 0, 1 and 2 open: else C code that prints would write into the next socket of ours.

    A daemon may have closed them, and Python's own streams are None then.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
