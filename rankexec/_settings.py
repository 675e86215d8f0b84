"""What RankedExecutor takes, checked: every wrong argument fails here, before anything starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from rankexec._checks import check_count, check_list, check_rank, check_seconds, check_variables
from rankexec._gang import namespace
from rankexec._slots import cpu_count, visible_gpus

__all__ = (
    "Settings",
    "check_devices",
    "check_fits",
    "default_world_size",
)


@dataclass(frozen=True)
class Settings:
    """One gang's settings, as they were given and found good."""

    world_size: int
    ctx: Any
    caller_rank: int | None
    gather: bool | Callable[[list[Any]], Any]
    timeout: float | None
    leave_timeout: float | None
    need: str | tuple[str, ...]
    imports: str
    by_value: tuple[ModuleType, ...]
    output: Any
    env: Mapping[str, str]

    @classmethod
    def checked(
        cls,
        *,
        world_size: int,
        ctx: Any,
        caller_rank: int | None,
        gather: Any,
        timeout: float | None,
        leave_timeout: float | None,
        need: Any,
        imports: str,
        by_value: Any,
        output: Any,
        env: Mapping[str, str] | None,
    ) -> Settings:
        """Return the settings; raises ValueError or TypeError, naming the argument."""
        check_count("world_size", world_size)
        check_rank("caller_rank", caller_rank, world_size)
        return cls(
            world_size=world_size,
            ctx=_checked_ctx(ctx),
            caller_rank=caller_rank,
            gather=_checked_gather(gather),
            timeout=_checked_limit("timeout", timeout),
            leave_timeout=_checked_limit("leave_timeout", leave_timeout),
            need=_checked_need(need),
            imports=namespace.parse_imports(imports),
            by_value=_checked_by_value(by_value),
            output=_checked_output(output, world_size),
            env=_checked_env(env),
        )

    def changed(self, overrides: Mapping[str, Any]) -> Settings:
        """Return these settings with some others, all checked once more: they hang together."""
        current = {f.name: getattr(self, f.name) for f in fields(self)}
        return Settings.checked(**{**current, **overrides})


def default_world_size(devices: Sequence[str] | None) -> int:
    """Return the number of devices if named, else of visible GPUs, else of usable CPU cores."""
    if devices is not None:
        return len(devices)
    if gpus := visible_gpus():
        return len(gpus)
    return cpu_count()


def check_devices(devices: Any) -> list[str] | None:
    """Return device names as CUDA_VISIBLE_DEVICES takes them; None stays None."""
    if devices is None:
        return None
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Iterable):
        raise TypeError(f"devices takes a list of GPU ids, got {devices!r}")
    names = []
    for device in devices:
        if isinstance(device, bool) or not isinstance(device, (int, str)):
            raise TypeError(
                f"devices takes GPU ids (int, or str such as 'GPU-8f2e'), got {device!r}"
            )
        names.append(str(device))
    if not names or len(set(names)) != len(names):
        raise ValueError(f"devices takes GPU ids, at least one, each once, got {devices!r}")
    return names


def check_fits(world_size: int, devices: Sequence[str] | None) -> None:
    """Raise ValueError if there are more ranks than devices."""
    if devices is not None and world_size > len(devices):
        raise ValueError(f"world_size={world_size} is more than the {len(devices)} devices named")


def _checked_ctx(ctx: Any) -> Any:
    is_manager = hasattr(type(ctx), "__enter__") and hasattr(type(ctx), "__exit__")
    if ctx is None or is_manager or callable(ctx):
        return ctx
    raise TypeError(
        f"ctx takes a context manager, or a callable without arguments that makes one, got {ctx!r}"
    )


def _checked_gather(gather: Any) -> Any:
    if isinstance(gather, bool) or callable(gather):
        return gather
    raise TypeError(f"gather takes True, False or a callable that takes the list, got {gather!r}")


def _checked_limit(name: str, seconds: Any) -> float | None:
    check_seconds(name, seconds)
    if seconds is None:
        return None
    if not seconds > 0:
        raise ValueError(f"{name} takes seconds above 0, or None, got {seconds!r}")
    return float(seconds)


def _checked_need(need: Any) -> str | tuple[str, ...]:
    if isinstance(need, str):
        return need
    if isinstance(need, Iterable) and not isinstance(need, (bytes, Mapping)):
        names = tuple(need)
        if all(isinstance(name, str) for name in names):
            return names
    raise TypeError(f"need takes names in a string, or a list of names, got {need!r}")


def _checked_by_value(by_value: Any) -> tuple[ModuleType, ...]:
    takes = "by_value takes a list of imported modules"
    modules = tuple(check_list(takes, by_value, ModuleType))
    for module in modules:
        if module.__name__ not in sys.modules:
            raise ValueError(f"{takes}, got {module.__name__!r}, which is not imported")
    return modules


def _checked_output(output: Any, world_size: int) -> Any:
    takes = "output takes 'all', 'caller', a list of ranks, or a directory"
    if isinstance(output, str):
        if output in ("all", "caller"):
            return output
        if not os.path.isdir(output):
            raise ValueError(f"{takes} (one to be made as a pathlib.Path), got {output!r}")
    if isinstance(output, (str, os.PathLike)) and isinstance(os.fspath(output), str):
        import pathlib  # with rankexec it would be a twelfth of its import

        return pathlib.Path(output)
    if not isinstance(output, Iterable):
        raise TypeError(f"{takes}, got {output!r}")
    ranks = list(output)
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(f"{takes}, got {rank!r} in the list")
        if not 0 <= rank < world_size:
            raise ValueError(f"{takes}; there is no rank {rank} in a gang of {world_size}")
    return frozenset(ranks)


_OF_THE_SEAT = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"})


def _checked_env(env: Any) -> Mapping[str, str]:
    if env is None:
        return {}
    checked = check_variables("env takes", env)
    for name in checked:
        if name in _OF_THE_SEAT:
            raise ValueError(f"env cannot set {name}, which every rank has of its own")
    if sys.platform == "win32":
        return {name.upper(): value for name, value in checked.items()}
    return checked
