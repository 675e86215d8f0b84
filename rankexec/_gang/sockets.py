"""Sockets of this process: a port kept for the ranks, and what a rank has connected."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ("PASSES_FILES", "SessionSockets", "reserved_port", "tcp_sockets")

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


@dataclass
class SessionSockets:
    """What the calls of a session have opened in a rank, and left open."""

    connected: set[int] = field(default_factory=set)
    """Inodes."""
    ports: set[int] = field(default_factory=set)
    """On which it listens: a peer that came in through one is a peer of the group."""


def tcp_sockets() -> tuple[dict[int, tuple[int, int]], set[int]]:
    """Return this process's TCP sockets: connected ones, and the ports on which it listens.

    The connected are {inode: (descriptor, local port)}: a descriptor's number is used again.
    """
    connected: dict[int, tuple[int, int]] = {}
    listening: set[int] = set()
    for name in os.listdir(_FD_DIRECTORY) if os.path.isdir(_FD_DIRECTORY) else ():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as own:
                if own.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                port = own.getsockname()[1]
                if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening.add(port)
                else:
                    own.getpeername()
                    connected[status.st_ino] = (int(name), port)
    return connected, listening


_FD_DIRECTORY = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
