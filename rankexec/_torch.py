"""What is asked of torch and torch.distributed; torch is imported only when it is asked."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rankexec._gang.sockets import without_sigpipe

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = (
    "abort_nccl",
    "as_timedelta",
    "check_group",
    "cuda_in_use",
    "destroy_group",
    "do_not_wait_at_exit",
    "gpu_memory_returned",
    "has_own_gpu",
    "join_group",
    "loopback_store",
    "peak_gpu_memory",
    "wait_for_all",
)


def as_timedelta(timeout: float | timedelta | None) -> timedelta | None:
    """Return a limit in seconds as torch takes it.

    Raises:
        TypeError, ValueError: it is something else, or not above 0.
    """
    from datetime import timedelta  # with rankexec it would be a twentieth of its import

    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, timedelta, type(None))):
        raise TypeError(f"timeout takes seconds or a timedelta, got {timeout!r}")
    if isinstance(timeout, (int, float)):
        timeout = timedelta(seconds=timeout)
    if timeout is not None and timeout <= timedelta(0):
        raise ValueError(f"timeout takes more than 0 seconds, got {timeout!r}")
    return timeout


@contextmanager
def loopback_store(timeout: timedelta | None) -> Iterator[str]:
    """Serve a TCPStore on a loopback port of the kernel's choice; yield its host:port.

    TCPStore by itself would listen on all interfaces, so the socket is made here.
    """
    listener = _listen_on_loopback()
    host, port = listener.getsockname()[:2]
    server: Future[Any] = Future()
    # The server connects to itself, and may wait for a name server (see below). This thread, if it
    # is the main one, waits in Python, where a Ctrl-C ends that.
    serve = partial(_serve, server, listener, timeout)
    thread = threading.Thread(target=serve, name="rankexec-store")
    try:
        thread.start()
    except RuntimeError:  # no thread to be had at interpreter exit
        serve()
        store = server.result()
    else:
        store = server.result()
        thread.join()
    del server, serve
    try:
        yield f"{host}:{port}"
    finally:
        del store  # ends its thread, and frees whoever still waits for a key


def _serve(server: Future[Any], listener: socket.socket, timeout: timedelta | None) -> None:
    import torch.distributed as dist

    with listener:
        host, port = listener.getsockname()[:2]
        limit = {} if timeout is None else {"timeout": timeout}
        try:
            with without_sigpipe():
                store = dist.TCPStore(
                    host,
                    port,
                    is_master=True,
                    wait_for_workers=False,
                    master_listen_fd=listener.fileno(),
                    **limit,
                )
        except BaseException as error:
            server.set_exception(error)
        else:
            listener.detach()  # the server closes it
            server.set_result(store)


def _listen_on_loopback() -> socket.socket:
    """Return a listening socket on ::1 if the hosts file names it, else on 127.0.0.1.

    torch asks for the name of every address that it connects to, and of 127.0.0.1 it does so in
    IPv6's form, ::ffff:127.0.0.1. No hosts file has that, so each rank would ask a name server,
    and wait five seconds where the answer is lost.
    """
    if socket.has_ipv6 and _names_ipv6_loopback():
        with suppress(OSError):  # the file has it, the host does not
            return _listen(socket.AF_INET6, "::1")
    return _listen(socket.AF_INET, "127.0.0.1")


def _listen(family: socket.AddressFamily, host: str) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.bind((host, 0))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


_HOSTS = "/etc/hosts"


def _names_ipv6_loopback() -> bool:
    with suppress(OSError), open(_HOSTS, encoding="utf-8", errors="replace") as file:
        return any(line.split()[:1] == ["::1"] for line in file)
    return False


def has_own_gpu(torch: Any, ranks: int) -> bool:
    """Return whether there is a GPU for each of this host's ranks. Makes no CUDA context."""
    return bool(torch.cuda.device_count() >= ranks)


def cuda_in_use() -> Any:
    """Return torch.cuda if this process has used it, else None; torch is not imported for that."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # torch may be half imported
    return cuda if cuda and cuda.is_initialized() else None


@contextmanager
def gpu_memory_returned() -> Iterator[None]:
    """Give free GPU memory back to the driver at the end, if more or less is used than before."""
    before = _gpu_memory()
    try:
        yield
    finally:
        if _gpu_memory() != before:
            gc.collect()  # what is in cycles is not free before
            sys.modules["torch"].cuda.empty_cache()


def _gpu_memory() -> tuple[int, int] | None:
    cuda = cuda_in_use()
    return None if cuda is None else (cuda.memory_allocated(), cuda.memory_reserved())


def peak_gpu_memory() -> int | None:
    """Return the most that torch has held of this process's present GPU, in bytes; None without."""
    cuda = cuda_in_use()
    if cuda is None:
        return None
    try:
        return int(cuda.max_memory_reserved())
    except RuntimeError:  # every call to a GPU that has failed; what counts is `fn`'s own error
        return None


def check_group(rank: int, size: int) -> None:
    """Raise RuntimeError unless the default group has this process in this place."""
    import torch.distributed as dist

    if (dist.get_rank(), dist.get_world_size()) != (rank, size):
        raise RuntimeError(
            f"this process has a default process group already, as rank {dist.get_rank()} of "
            f"{dist.get_world_size()}, but its seat is rank {rank} of {size}; destroy it first"
        )


def join_group(backend: str, store: Any, rank: int, size: int, timeout: timedelta | None) -> None:
    """Make the default group."""
    import torch.distributed as dist

    limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    with without_sigpipe():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, **limit)


_wait_at_exit = True


def do_not_wait_at_exit() -> None:
    """Say that this process ends by os._exit: what is left of its groups ends with it."""
    global _wait_at_exit  # noqa: PLW0603  # a process becomes a rank once
    _wait_at_exit = False


def wait_for_all(store: Any, size: int) -> None:
    """Wait until all ranks of a group have joined it, at a store that outlives them.

    gloo's ranks connect in pairs. One that has all its connections may be done and gone before
    another has seen that its own are there, and takes them for those of a crashed peer.
    """
    if store.add("joined", 1) == size:
        store.set("all have joined", "")
    store.wait(["all have joined"])


def destroy_group() -> None:
    """Destroy the default group, if it is still there.

    A thread takes it apart: gloo's threads look only every 10 ms whether they are to end, and the
    gang's result would wait for them. Put off it must not be: a peer may be waiting in a collective
    until this rank's sockets are closed.
    """
    import torch.distributed as dist

    if not dist.is_initialized():  # fn may have destroyed it, to make its own
        return
    last = [dist.group.WORLD]
    dist.destroy_process_group()
    # A daemon in a process that is finalized could be in C++ when the interpreter is gone.
    thread = threading.Thread(target=last.clear, name="rankexec-destroy", daemon=not _wait_at_exit)
    with suppress(RuntimeError):  # no thread to be had at interpreter exit; then it is done here
        thread.start()


def abort_nccl() -> None:
    """Free the caller's rank from an NCCL collective whose peers are gone."""
    # No import statement: the rank may be in the middle of that import, and hold its lock.
    c10d: Any = sys.modules.get("torch.distributed.distributed_c10d")
    if c10d is not None and c10d.is_initialized() and c10d.get_backend() == "nccl":
        c10d._abort_process_group()
