"""Descriptors that travel beside a call: of pipes, queues and memory that processes share.

Their libraries pickle these only while a process is being started, to which they hand descriptors.
While a call is packed, that process is a `Beside`. It puts the descriptors into a box, a socket out
of which every rank takes copies: whatever their number, few are under way, and few open here.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import multiprocess

from rankexec._gang import sockets
from rankexec._gang.deferred import Deferred
from rankexec._gang.sockets import close_all, receive_files, send_files

__all__ = (
    "TWINS",
    "Beside",
    "Handed",
    "arriving",
    "beside",
    "collecting",
    "taking",
)

TWINS: tuple[Any, ...] = (multiprocess, multiprocessing)
"""The library that starts ranks, and the one that it is a copy of; users may have either."""
_IN_A_BOX = 200
"""Linux takes no more than 253 in one message."""
_here = threading.local()


class Beside:
    """Takes the descriptors of a call that is being packed, as a Popen does in multiprocessing."""

    def __init__(self) -> None:
        self._taken: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        """Take a descriptor; return the number by which ranks find it."""
        # Who takes copies out of a box leaves it as it is; other systems' sockets do not do that.
        if sys.platform != "linux" or not sockets.PASSES_FILES:
            raise TypeError(
                "descriptors do not travel to other processes here; use multiprocessing.Manager()"
            )
        with Deferred():
            self._taken.append(os.dup(descriptor))
        return len(self._taken) - 1

    def DupFd(self, number: int) -> Handed:  # noqa: N802  # multiprocessing's name
        return Handed(number)

    def clear(self) -> None:
        """Give back what was taken."""
        close_all(self._taken)
        self._taken.clear()

    def boxes(self) -> tuple[int, ...]:
        """Return all that was taken, in boxes."""
        with ExitStack() as made:
            boxes = [
                made.enter_context(_box(self._taken[at : at + _IN_A_BOX]))
                for at in range(0, len(self._taken), _IN_A_BOX)
            ]
            return tuple(box.detach() for box in boxes)


class Handed:
    """Stands for a descriptor in a call's stream."""

    def __init__(self, number: int) -> None:
        self._number = number

    def detach(self) -> int:
        """Return (in a rank) the descriptor, which is the user's from here on."""
        descriptors: dict[int, int] = _here.arrived
        return descriptors.pop(self._number)


def beside() -> Beside | None:
    """Return what takes descriptors while this thread packs a call; None while it does not."""
    found: Beside | None = getattr(_here, "beside", None)
    return found


@contextmanager
def collecting() -> Iterator[Beside]:
    """Span the packing of a call: what processes share may be in it."""
    own = Beside()
    try:
        with taking(own):
            yield own
    finally:
        own.clear()


@contextmanager
def taking(own: Beside | None) -> Iterator[None]:
    """Span what this thread packs of a call."""
    before = [twin.context.get_spawning_popen() for twin in TWINS]
    outer, _here.beside = beside(), own
    try:
        for twin in TWINS:
            twin.context.set_spawning_popen(own)
        yield
    finally:
        for twin, popen in zip(TWINS, before, strict=True):
            twin.context.set_spawning_popen(popen)
        _here.beside = outer


@contextmanager
def arriving(boxes: Sequence[int]) -> Iterator[None]:
    """Span the unpacking of a call; what nobody has taken is closed after it."""
    outer = getattr(_here, "arrived", None)
    descriptors: dict[int, int] = {}
    _here.arrived = descriptors
    try:
        for box in boxes:
            for descriptor in _look_into(box):
                descriptors[len(descriptors)] = descriptor
        yield
    finally:
        close_all(descriptors.values())
        _here.arrived = outer


def _box(descriptors: Sequence[int]) -> socket.socket:
    """Return a socket with descriptors in it; it holds them as long as it is open."""
    into, box = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with into:
        try:
            send_files(into, bytes([len(descriptors)]), descriptors)
        except BaseException:
            box.close()
            raise
    return box


def _look_into(box: int) -> list[int]:
    """Return copies of what is in a box. Raises OSError if not all may be open in this process."""
    with socket.socket(fileno=os.dup(box)) as own:
        own.setblocking(True)  # whatever the user's default time limit is
        count, found = receive_files(own, 1, _IN_A_BOX, socket.MSG_PEEK)
    if len(found) != count[0]:  # the kernel drops what is too many
        close_all(found)
        raise OSError(errno.EMFILE, "a call brings more descriptors than this rank may have open")
    return found
