"""Sockets of this process: a port kept for the ranks, and what a rank has connected."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ("PASSES_FILES", "TcpSocket", "open_sockets", "reserved_port", "tcp_sockets")

PASSES_FILES = all(hasattr(socket, name) for name in ("AF_UNIX", "CMSG_LEN", "SCM_RIGHTS"))
"""Whether open files can be sent to other processes. Not on Windows."""


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keep a loopback port for MASTER_PORT: nobody else gets it, rank 0 may listen on it.

    A bound socket that does not listen refuses the port to every other bind, except to one with
    SO_REUSEADDR, which torch's and everybody's stores set.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def open_sockets() -> dict[int, int]:
    """Return this process's sockets, of every kind: descriptor by inode.

    An inode is not used again while we look; a descriptor's number is.
    """
    found: dict[int, int] = {}
    for name in os.listdir(_FD_DIRECTORY) if os.path.isdir(_FD_DIRECTORY) else ():
        try:
            status = os.fstat(int(name))
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(name)
    return found


@dataclass(frozen=True)
class TcpSocket:
    """One that listens, or is connected."""

    descriptor: int
    port: int
    listens: bool


def tcp_sockets() -> dict[int, TcpSocket]:
    """Return this process's TCP sockets by inode."""
    found: dict[int, TcpSocket] = {}
    for inode, descriptor in open_sockets().items():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
            if own.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            listens = bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            if not listens:
                own.getpeername()  # raises if it is not connected
            found[inode] = TcpSocket(descriptor, own.getsockname()[1], listens)
    return found


_FD_DIRECTORY = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
