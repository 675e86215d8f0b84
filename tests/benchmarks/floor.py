"""The floor: a fork server with torch, and a held store, without a library around them.

No outcomes, no output, no environment, no cleaning up, no guarantee of any kind: a server with
torch imported forks a process per rank; each gets its call over a socket, says "ready", waits for
"go", runs, says "done". The caller holds the store of a group. What rankexec takes more than this
is the price of what it promises; that its forks take less is due to the guardian's huge pages.

    python floor.py <fd>      the server, on a Unix socket: one message and n sockets for each gang
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Floor:
    """The caller. In mode "caller" it is rank 0, else all ranks are children."""

    def __init__(self, mode: str) -> None:
        import torch  # noqa: F401  # as a caller who has a model

        self._first = 1 if mode == "caller" else 0
        self._control: socket.socket
        self._server: subprocess.Popen[bytes]

    def open(self) -> None:
        """Start the server."""
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def gang(
        self, size: int, fn: Callable[..., Any], *arguments: Any, ddp: bool, gather: bool
    ) -> None:
        """Run one gang; ranks return nothing, as there is nothing to return it with."""
        if gather:
            raise NotImplementedError("has no results")
        store, port = _serve_store() if ddp else (None, 0)
        pairs = [socket.socketpair() for _ in range(self._first, size)]
        socket.send_fds(self._control, [b"f"], [theirs.fileno() for _, theirs in pairs])
        for rank, (ours, theirs) in enumerate(pairs, self._first):
            theirs.close()
            ours.sendall(pickle.dumps((rank, size, port, fn, arguments)))
        ranks = [ours for ours, _ in pairs]
        for rank in ranks:
            rank.recv(1)
        for rank in ranks:
            rank.sendall(b"g")
        if self._first:
            _run(0, size, port, fn, arguments)
        for rank in ranks:
            if rank.recv(1) != b"d":
                raise ConnectionError("a rank died")
            rank.close()
        del store

    def close(self) -> None:
        """End the server."""
        self._control.close()
        self._server.wait()


def _serve_store() -> tuple[Any, int]:
    import torch.distributed as dist

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    fd = listener.detach()
    options = {"is_master": True, "wait_for_workers": False, "master_listen_fd": fd}
    return dist.TCPStore("127.0.0.1", port, **options), port


def _run(rank: int, size: int, port: int, fn: Callable[..., Any], arguments: Any) -> None:
    if not port:
        fn(*arguments)
        return
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    fn(*arguments)
    dist.destroy_process_group()


def _be_rank(line: socket.socket) -> None:
    call = pickle.loads(line.recv(1 << 16))
    line.sendall(b"r")
    if line.recv(1) == b"g":
        _run(*call)
        line.sendall(b"d")


def _serve(control: socket.socket) -> None:
    import torch
    import torch._dynamo
    import torch.distributed

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, 1024)
        if not message:
            return
        for fd in fds:
            if os.fork() == 0:
                try:
                    _be_rank(socket.socket(fileno=fd))
                finally:
                    os._exit(0)
        for fd in fds:
            os.close(fd)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
