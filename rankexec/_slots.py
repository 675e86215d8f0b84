"""Which devices are free: a gang takes all that it needs, or waits."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

__all__ = ("Slots", "cpu_count", "visible_gpus")


@lru_cache(maxsize=1)
def cpu_count() -> int:
    """Return the CPU cores that this process may use: affinity and cgroups count."""
    import loky  # imports much: not with rankexec, but with the first executor

    return int(loky.cpu_count())


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Makes no CUDA context, and does not import torch where there is no NVIDIA driver.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if "torch" not in sys.modules and not os.path.exists("/proc/driver/nvidia"):
        return []
    try:
        import torch
    except ImportError:
        return []
    # It asks NVML; `is_available` would initialise CUDA and make later forks unusable.
    return [str(index) for index in range(torch.cuda.device_count())]


class Slots:
    """The devices of one executor. Without named devices, ranks share the CPUs and never wait."""

    def __init__(self, devices: Sequence[str] | None) -> None:
        self.devices = None if devices is None else list(devices)
        self._free = list(devices or ())
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()
        # By thread, the devices that its gang has, and that sessions it has opened have. Not by its
        # ident, which another thread may have while a session outlives its opener.
        self._of_gangs: Counter[threading.Thread] = Counter()
        self._of_sessions: Counter[threading.Thread] = Counter()

    def check_reachable(self, world_size: int, *, inside: bool) -> None:
        """Raise RuntimeError if only this thread itself could free what a new gang needs.

        Args:
            world_size: the ranks of the new gang.
            inside: whether the thread is a rank; else its last gang's ranks are ending just now.
        """
        thread = threading.current_thread()
        held = self._of_sessions[thread] + (self._of_gangs[thread] if inside else 0)
        if held and len(self.devices or ()) - held < world_size:
            raise RuntimeError(
                f"a gang of {world_size} would wait for ever: {held} of the "
                f"{len(self.devices or ())} devices are held by the gang that this thread is a "
                f"rank of, or by a session that it has opened; close that, or name more devices"
            )

    @contextmanager
    def taken(self, world_size: int, *, for_session: bool = False) -> Iterator[list[str] | None]:
        """Hold `world_size` devices, all or none, first come first served."""
        if self.devices is None:
            yield None
            return
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._queue[0] is ticket and len(self._free) >= world_size
                )
            finally:  # an interrupted wait must not stand in the way of the next
                self._queue.remove(ticket)
                self._changed.notify_all()
            mine, self._free = self._free[:world_size], self._free[world_size:]
            self._changed.notify_all()
        thread = threading.current_thread()
        holders = self._of_sessions if for_session else self._of_gangs
        holders[thread] += world_size
        try:
            yield mine
        finally:
            with self._changed:
                holders[thread] -= world_size
                if not holders[thread]:
                    del holders[thread]
                self._free = [d for d in self.devices if d in self._free or d in mine]
                self._changed.notify_all()
