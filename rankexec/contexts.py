"""What ranks run in: torch.distributed's process group.

A context for ranks is any context manager. If it has a method `caller_side(world_size,
caller_rank)`, that is entered once per gang in the caller, before any rank is started, and what it
yields (a mapping of names to strings, None to unset one) is added to the ranks' environment. It is
left when all ranks have left the context, or after seconds if the caller's rank hangs in it. A
method `caller_abort()` frees that rank: it is called when the gang has failed and the other ranks
are ended, from another thread of the caller, again and again until the rank has left. If it has an
attribute `preload`, these are modules for a launcher to import ahead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from rankexec._gang.saving import leave_group
from rankexec._torch import (
    abort_nccl,
    as_timedelta,
    check_group,
    has_own_gpu,
    join_group,
    loopback_store,
    wait_for_all,
)

if TYPE_CHECKING:
    from datetime import timedelta

    import torch

__all__ = ("TorchDDPCtx",)

_STORE = "_RANKEXEC_STORE"
"""Where the caller's store listens, as host:port; not MASTER_PORT, which is the user's to use."""
_DEVICE = "_RANKEXEC_DEVICE"
"""Which GPU of those that the caller sees its rank has, if that is not LOCAL_RANK."""
_CONNECT_SECONDS = 30.0


class TorchDDPCtx:
    """torch.distributed's default process group, joined before `fn` and destroyed after it.

    The caller holds the rendezvous: a TCPStore on a loopback port that the kernel chose. Every
    rank, the caller's too, is its client. With `addr` the gang is one host's part of a group that
    spans hosts by hand: rank `base_rank` is the first one here, and the group's rank 0 listens on
    `addr`:`port`.

    Args:
        backend: as `torch.distributed.init_process_group` takes it. None: "nccl" if every rank
            of this host has a GPU of its own, else "gloo".
        use_gpu: whether ranks use GPUs at all.
        world_size: ranks of the whole group, on all hosts. None: this gang's.
        base_rank: the group's rank of this gang's rank 0.
        addr: host name or address of the group's rank 0; with it, `port` is needed.
        port: TCP port of the group's rank 0, 1 to 65535.
        num_threads: torch's threads per rank. None: OMP_NUM_THREADS, which is this host's cores
            divided by its ranks unless you have set it.
        timeout: seconds (or a timedelta) that a collective may take; None: torch's default.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    preload: ClassVar[tuple[str, ...]] = ("torch", "torch.distributed", "torch._dynamo")
    """What ranks import for it; a launcher may do that ahead. DDP imports torch._dynamo, 1 s."""

    def __init__(
        self,
        backend: str | None = None,
        use_gpu: bool = True,
        world_size: int | None = None,
        base_rank: int = 0,
        addr: str | None = None,
        port: int | None = None,
        num_threads: int | None = None,
        timeout: float | timedelta | None = None,
    ) -> None:
        _check_int("world_size", world_size, 1, None)
        _check_int("base_rank", base_rank, 0, None)
        _check_int("port", port, 1, 65535)
        _check_int("num_threads", num_threads, 1, None)
        for name, value in (("backend", backend), ("addr", addr)):
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} takes a string or None, got {value!r}")
        if (addr is None) != (port is None):
            raise ValueError(f"addr and port go together, got addr={addr!r}, port={port!r}")
        if addr is None and (world_size is not None or base_rank):
            raise ValueError("a group that spans hosts (world_size, base_rank) needs addr and port")
        self.backend = backend
        self.use_gpu = bool(use_gpu)
        self.world_size = world_size
        self.base_rank = base_rank
        self.addr = addr
        self.port = port
        self.num_threads = num_threads
        self.timeout = as_timedelta(timeout)
        self._leaving = ExitStack()

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.__getstate__().items() if v not in (None, 0)}
        return f"TorchDDPCtx({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_leaving"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _leaving=ExitStack())

    @contextmanager
    def caller_side(
        self, world_size: int, caller_rank: int | None
    ) -> Iterator[Mapping[str, str | None]]:
        """Hold the group's store while the gang runs (in the caller).

        Raises:
            RuntimeError: the caller is to be a rank and has a default process group already.
            ValueError: the gang does not fit into the group's world size.
        """
        import torch.distributed as dist

        if caller_rank is not None and dist.is_available() and dist.is_initialized():
            raise RuntimeError(
                f"this process has a default process group already (rank {dist.get_rank()} of "
                f"{dist.get_world_size()}), so it cannot be rank {caller_rank} of a new one; call "
                f"torch.distributed.destroy_process_group() first, or use caller_rank=None"
            )
        if self._address(world_size) is not None:
            size = self.world_size or world_size
            if self.base_rank + world_size > size:
                raise ValueError(
                    f"ranks {self.base_rank} to {self.base_rank + world_size - 1} do not fit into "
                    f"world_size={size}"
                )
            yield {"GLOO_SOCKET_IFNAME": None, "NCCL_SOCKET_IFNAME": None}
            return
        with loopback_store(self.timeout) as address:
            yield {_STORE: address}

    def caller_abort(self) -> None:
        """Free the caller's rank from a collective of NCCL, which ignores that its peers died."""
        abort_nccl()

    def __enter__(self) -> TorchDDPCtx:  # noqa: PYI034  # Self came with 3.11
        """Join the group (in a rank)."""
        import torch
        import torch.distributed as dist

        with ExitStack() as undo:
            local_rank, ranks_here = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
            address = self._address(ranks_here)
            rank = _number("RANK") + self.base_rank
            size = self.world_size or _number("WORLD_SIZE")
            undo.enter_context(_set(self._variables(rank, size, address)))
            on_gpu = self.use_gpu and has_own_gpu(torch, ranks_here)
            if on_gpu:
                torch.cuda.set_device(int(os.environ.get(_DEVICE, local_rank)))
                undo.callback(torch.cuda.empty_cache)
            if dist.is_initialized():
                check_group(rank, size)
            else:
                backend = self.backend or ("nccl" if on_gpu else "gloo")
                store = self._store(rank, size, address)
                undo.push(leave_group)  # not after it: this rank may be broken off just then
                join_group(backend, store, rank, size, self.timeout)
                if address is None:
                    wait_for_all(store, size)
            # Not sooner: one that is broken off while it joins may never come to undo it.
            threads = self.num_threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
            if threads:
                undo.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(threads)
            self._leaving = undo.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave: destroy the group if this context made it, when no thread is at work in it."""
        self._leaving.__exit__(*exc_info)  # type: ignore[arg-type]  # all three, as they came

    def _address(self, ranks_here: int) -> tuple[str, int] | None:  # noqa: ARG002  # for subclasses
        """Return where the group's rank 0 listens; None if the caller holds the store."""
        return None if self.addr is None or self.port is None else (self.addr, self.port)

    def _variables(self, rank: int, size: int, address: tuple[str, int] | None) -> dict[str, str]:
        """Return what the environment says while a rank is in a group larger than its gang."""
        if address is None:
            return {}
        host, port = address
        names = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": host, "MASTER_PORT": port}
        return {name: str(value) for name, value in names.items()}

    def _store(
        self, rank: int, size: int, address: tuple[str, int] | None
    ) -> torch.distributed.Store:
        import datetime as dt

        import torch.distributed as dist

        if address is not None:
            given = {} if self.timeout is None else {"timeout": self.timeout}
            store = dist.TCPStore(*address, size, is_master=rank == 0, **given)
        else:
            host, _, port = _variable(_STORE).rpartition(":")
            # The server stood before this rank began. Should it be gone, because the gang is being
            # ended, torch would try again for as long as a collective may take.
            limit = dt.timedelta(seconds=_CONNECT_SECONDS)
            patience = min(limit, self.timeout or limit)
            store = dist.TCPStore(host, int(port), is_master=False, timeout=patience)
            store.set_timeout(self.timeout or dist.distributed_c10d.default_pg_timeout)
        return dist.PrefixStore("rankexec", store)


def _number(name: str) -> int:
    return int(_variable(name))


def _variable(name: str) -> str:
    if name not in os.environ:
        raise RuntimeError(f"no {name} is set: TorchDDPCtx is entered by the ranks of a gang")
    return os.environ[name]


@contextmanager
def _set(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, then put back what was there: a rank may enter once more."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_int(name: str, value: Any, least: int, most: int | None) -> None:
    if value is None and name != "base_rank":
        return
    takes = f"an int from {least}" + (f" to {most}" if most else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes {takes}, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} takes {takes}, got {value!r}")
