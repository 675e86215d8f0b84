"""Everything about a gang that is decided before its first child starts."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import process as twin_process
from typing import Any

import psutil
from multiprocess import spawn

from rankexec._checks import check_variables
from rankexec._gang.call import RankInfo, Seat, Stage
from rankexec._gang.deferred import Interruptible
from rankexec._gang.environment import base_environment
from rankexec._gang.main import main_as_module
from rankexec._gang.sets import NOTHING, Sets
from rankexec._gang.sockets import reserved_port
from rankexec._gang.surroundings import Surroundings, surroundings
from rankexec._gang.wire import Packed
from rankexec._settings import Settings
from rankexec._slots import cpu_count, visible_gpus
from rankexec.launchers import Launcher

__all__ = ("Plan", "prepare")


@dataclass
class Plan:
    """What a gang is made from; nothing of the user's, who decides how long that lives."""

    packed: Packed | None
    """The call for the children; None if there are none."""
    seats: list[Seat]
    environments: list[dict[str, str]]
    """By rank, the whole environment."""
    preparation: dict[str, Any]
    launcher: Launcher
    caller_rank: int | None
    imports: str
    timeout: float | None
    output: Any
    gather: bool
    infos: list[RankInfo]
    side: ExitStack
    """The caller side of the context, and the port. Closed early to free a rank that hangs."""
    stage: Stage = "once"
    sets: Sets = NOTHING
    """Names of which the children are to tell whether they set them."""

    def prefix(self, rank: int) -> str:
        """Return what stands before a child's lines; nothing for rank 0 if all are children."""
        return "" if self.caller_rank is None and rank == 0 else f"[rank {rank}] "


def prepare(
    packed: Packed | None,
    settings: Settings,
    devices: list[str] | None,
    launcher: Launcher,
    context: AbstractContextManager[Any],
    infos: list[RankInfo],
    around: Surroundings | None = None,
) -> Plan:
    """Decide everything, and hold what the gang needs from the caller: a port, a store.

    Args:
        packed: the call for the children; None if there are none.
        settings: the executor's.
        devices: GPUs that were taken for this gang, by rank; None: no GPUs were named.
        launcher: what will start the children.
        context: the context manager whose caller side, if it has one, is entered.
        infos: by rank; what is known of the ranks now is filled in.
        around: the surroundings of the thread that submits; None: it is this one.
    """
    around = around or surroundings(cpu_count())
    with ExitStack() as side:
        port = side.enter_context(reserved_port())
        extra: Mapping[str, str | None] = {}
        if hasattr(context, "caller_side"):
            entered = context.caller_side(settings.world_size, settings.caller_rank)
            what = f"caller_side of {type(context).__name__} is to yield"
            with Interruptible():
                found = side.enter_context(entered) or {}
            extra = check_variables(what, found, unset=True)
        base, added = _variables(settings, around.cores, extra)
        seats = _seats(settings.world_size, port, added, devices)
        for seat in seats:
            _fill_in(infos[seat.rank], seat, settings.caller_rank)
        return Plan(
            packed=packed,
            seats=seats,
            environments=[_environment(base, seat, devices, settings) for seat in seats],
            preparation=_preparation(around),
            launcher=launcher,
            caller_rank=settings.caller_rank,
            imports=settings.imports,
            timeout=settings.timeout,
            output=settings.output,
            gather=settings.gather is not False,
            infos=infos,
            side=side.pop_all(),
        )


def _variables(
    settings: Settings, cores: int, extra: Mapping[str, str | None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what of the caller's environment ranks have, and what is added to it."""
    base = base_environment()
    variables = {**_defaults(base, cores // settings.world_size), **extra, **settings.env}
    # With torch's agent store `env://` would join a store that is not ours.
    unset = {name for name, value in variables.items() if value is None} | {_AGENT_STORE}
    base = {name: value for name, value in base.items() if name not in unset}
    return base, {name: value for name, value in variables.items() if value is not None}


def _seats(
    world_size: int, port: int, variables: Mapping[str, str], devices: list[str] | None
) -> list[Seat]:
    gpus = visible_gpus() if devices is None else devices
    return [
        Seat(
            rank=rank,
            world_size=world_size,
            master_addr="127.0.0.1",
            master_port=port,
            local_rank=rank,
            local_world_size=world_size,
            device=gpus[rank] if len(gpus) >= world_size else None,
            variables=variables,
        )
        for rank in range(world_size)
    ]


_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def _environment(
    base: Mapping[str, str], seat: Seat, devices: list[str] | None, settings: Settings
) -> dict[str, str]:
    environment = {**base, **seat.environment()}
    if devices is None:
        return environment
    if seat.rank == settings.caller_rank:
        return {**environment, **_place_of_callers_device(seat)}
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(devices)}


def _place_of_callers_device(seat: Seat) -> dict[str, str]:
    """Say which of the GPUs that the caller sees is its rank's; for TorchDDPCtx.

    It goes on seeing all that it saw: CUDA reads CUDA_VISIBLE_DEVICES once. Raises ValueError if
    the device is not among them.
    """
    seen = visible_gpus()
    if not seen:  # the devices stand for something else
        return {}
    if seat.device not in seen:
        raise ValueError(
            f"rank {seat.rank} runs in this process, which sees the GPUs {', '.join(seen)}; "
            f"{seat.device!r} of `devices` is not among them: name those, or use caller_rank=None"
        )
    return {"_RANKEXEC_DEVICE": str(seen.index(seat.device))}


def _fill_in(info: RankInfo, seat: Seat, caller_rank: int | None) -> None:
    info.pid = os.getpid() if seat.rank == caller_rank else None
    info.host, info.device = socket.gethostname(), seat.device


def _defaults(base: Mapping[str, str], cores: int) -> dict[str, str | None]:
    """Return what ranks of a gang on one host want, unless the user has set it."""
    wanted = {
        # Where the host name resolves to an outside address, gloo would listen there.
        "GLOO_SOCKET_IFNAME": _loopback_interface(),
        "NCCL_SOCKET_IFNAME": _loopback_interface(),
        "OMP_NUM_THREADS": str(max(1, cores)),
    }
    return {name: value for name, value in wanted.items() if value and name not in base}


@lru_cache(maxsize=1)
def _loopback_interface() -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    return None


def _preparation(around: Surroundings) -> dict[str, Any]:
    """Return what a child takes over from this process, but never its `__main__`."""
    main = main_as_module()
    vars(main).setdefault("__spec__", None)  # after IPython's `%reset`, under pdb
    try:
        data = spawn.get_preparation_data("rank")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno, "this process's working directory is gone, and ranks start in it: chdir"
        ) from None
    for name in ("init_main_from_name", "init_main_from_path"):
        data.pop(name, None)
    spec, package = getattr(main, "__spec__", None), getattr(main, "__package__", None)
    data["main"] = getattr(spec, "name", None), package, getattr(main, "__file__", None)
    data["twin_start_method"] = multiprocessing.get_start_method(allow_none=True)
    data["umask"], data["surroundings"] = _umask(), around
    # As themselves they may only be pickled by their own libraries, while these start a process.
    data["authkey"] = bytes(data["authkey"])
    data["twin_authkey"] = bytes(twin_process.current_process().authkey)
    return data  # type: ignore[no-any-return]  # multiprocess has no types


def _umask() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)  # no way to read it without setting it, if only for a moment
    os.umask(umask)
    return umask
