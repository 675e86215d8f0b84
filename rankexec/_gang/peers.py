"""A stand-in for peers that are dead, so that gloo does not wait for them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Collection

from rankexec._gang.sockets import NO_SIGNAL, InetSocket, free_descriptors

__all__ = ("hang_up",)

_CONNECT_SECONDS = 0.02
"""For a connection within this host, which the kernel makes by itself."""
_SPARED_DESCRIPTORS = 100
"""What is left to others: gloo would end the process if it could not take a connection."""


def hang_up(listeners: Collection[InetSocket], size: int) -> None:
    """Call at this process's own listeners as each of a group's peers would, and hang up.

    While a group of gloo's is made, a rank waits for one peer after another to connect to it, in
    C++, and for a peer that has died it waits as long as a collective may take. It looks at nothing
    but its listener. There a peer says which of the ranks it is for: a pair of ranks has a number,
    from 0 to `size` - 1, which goes first over the new connection. Once there is one, and ends, the
    rank sees what it sees of every peer that dies. A number for which it does not wait (yet) gloo
    keeps for later, once, until the group is gone.

    Args:
        listeners: sockets of this process that listen.
        size: ranks of the largest group.
    """
    room = free_descriptors() - _SPARED_DESCRIPTORS if listeners else 0
    for listener in sorted(listeners, key=lambda one: one.inode, reverse=True):  # the newest first
        room -= size
        if room < 0:
            return
        with contextlib.suppress(OSError):  # closed by now; or it takes no more, then it has enough
            for number in range(size):
                with socket.socket(listener.family, socket.SOCK_STREAM) as peer:
                    peer.settimeout(_CONNECT_SECONDS)
                    peer.connect(listener.address)
                    peer.send(struct.pack("=q", number), NO_SIGNAL)
