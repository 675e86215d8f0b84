"""Sockets of this process: pairs of them, a port kept for the ranks, what a rank has connected."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = (
    "NO_SIGNAL",
    "PASSES_FILES",
    "InetSocket",
    "Spared",
    "close_all",
    "cut",
    "free_descriptors",
    "inet_sockets",
    "open_sockets",
    "quiet",
    "receive_files",
    "reserved_port",
    "send_files",
    "without_sigpipe",
)

PASSES_FILES = all(hasattr(socket, name) for name in ("AF_UNIX", "CMSG_LEN", "SCM_RIGHTS"))
"""Whether open files can be sent to other processes. Not on Windows."""
NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
"""A flag for everything that we send: where nobody listens any more, BrokenPipeError is all. For
macOS, which has it for a socket and not for a call, there is `quiet`."""
_SO_NOSIGPIPE = 0x1022
# No program that is started just now inherits the files that are received.
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def quiet(own: socket.socket) -> socket.socket:
    """Return the socket; to send on it with `NO_SIGNAL` raises no SIGPIPE, on no system."""
    if sys.platform == "darwin" and not NO_SIGNAL:
        own.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
    return own


def send_files(own: socket.socket, data: bytes, files: Sequence[int]) -> int:
    """Send data, and open files with its first byte; return how much of it was sent."""
    # Not `socket.send_fds` and `recv_fds`, which take flags and do not pass them on.
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))]
    return own.sendmsg([data], beside, NO_SIGNAL)


def receive_files(
    own: socket.socket, size: int, most: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Receive data, at most `size` bytes, and at most so many files.

    At the limit of descriptors the system drops those that are too many.
    """
    if not PASSES_FILES:
        return own.recv(size), []
    files = array("i")
    room = socket.CMSG_SPACE(most * files.itemsize)
    data, beside, _, _ = own.recvmsg(size, room, flags | _RECEIVE_FLAGS)
    for _, _, content in beside:
        files.frombytes(content[: len(content) // files.itemsize * files.itemsize])
    return data, list(files)


def close_all(descriptors: Iterable[int]) -> None:
    """Close them, whether they are open or not."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@contextmanager
def without_sigpipe() -> Iterator[None]:
    """Have no SIGPIPE in this thread, nor ever in the threads that torch starts meanwhile.

    Those of gloo write to a peer as to a file. A process that has that signal at its default would
    die with the peer.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no such signal
        yield
        return
    number = signal.SIGPIPE
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        if number not in blocked:
            if number in signal.sigpending():  # from a rendezvous, which is this thread's own
                signal.sigwait([number])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


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
    try:  # not to ask first whether it is there: the kernel counts all that is in it for that
        names = os.listdir(_FD_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        try:
            status = os.fstat(int(name))
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(name)
    return found


class Spared:
    """The sockets that were there before the calls of a rank, and are spared if one is broken off.

    Args:
        between: whether others may open some between the calls, as in the caller; in a child, whose
            calls have opened all that is not there now, it is looked once.

    Attributes:
        inodes: theirs.
    """

    def __init__(self, *, between: bool) -> None:
        self.inodes: AbstractSet[int] = frozenset() if between else open_sockets().keys()
        self._between = between
        self._own: AbstractSet[int] = frozenset()

    def begins(self) -> None:
        """Look before a call."""
        if self._between:
            self.inodes = open_sockets().keys() - self._own

    def ends(self) -> None:
        """Look after a call: what it has opened is the calls' own, also in the next one."""
        if self._between:
            self._own = open_sockets().keys() - self.inodes


def free_descriptors() -> int:
    """Return how many more files this process may open."""
    return os.sysconf("SC_OPEN_MAX") - len(os.listdir(_FD_DIRECTORY))


@dataclass(frozen=True)
class InetSocket:
    """One of IP that listens, or is connected."""

    inode: int
    descriptor: int
    family: int
    kind: int
    address: tuple[Any, ...]
    listens: bool

    @property
    def port(self) -> int:
        """Of its own end."""
        return int(self.address[1])


def inet_sockets() -> dict[int, InetSocket]:
    """Return this process's sockets of TCP and UDP by inode."""
    found: dict[int, InetSocket] = {}
    for inode, descriptor in open_sockets().items():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
            if own.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            listens = bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            if not listens:
                own.getpeername()  # raises if it is not connected
            address = own.getsockname()
            found[inode] = InetSocket(inode, descriptor, own.family, own.type, address, listens)
    return found


def cut(connected: InetSocket) -> None:
    """End a connection, for whoever in this process waits for its other side."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connected.descriptor)) as own:
        if os.fstat(own.fileno()).st_ino != connected.inode:
            return  # closed by now, and its number is another's
        if connected.kind == socket.SOCK_DGRAM:
            _refuse(own)
        else:
            own.shutdown(socket.SHUT_RDWR)


def _refuse(own: socket.socket) -> None:
    """Let the other side of a socket of UDP be one that is not there.

    A resolver takes that for its name server's answer. From a socket that is shut down it goes on
    reading, without a pause, until its five seconds are over.
    """
    with socket.socket(own.family, socket.SOCK_DGRAM) as gone:
        gone.bind((own.getsockname()[0], 0))
        nowhere = gone.getsockname()
    own.connect(nowhere)
    own.send(b"", NO_SIGNAL)


_FD_DIRECTORY = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
