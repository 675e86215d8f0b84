"""Which devices are free: a gang takes all that it needs, or waits."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache

from rankexec._gang.deferred import Deferred

__all__ = ("Slots", "cpu_count", "visible_gpus")


def cpu_count() -> int:
    """Return the CPU cores that this thread may use: affinity and cgroups count."""
    return _count(frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)


@lru_cache(maxsize=16)
def _count(_affinity: frozenset[int] | None) -> int:
    """Count them: it reads the files of cgroups, and that for every gang."""
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
        self._lock = threading.Lock()
        self._free = list(devices or ())
        self._queue: deque[_Ticket] = deque()
        # Not by thread ident, which another thread may have while a session outlives its opener.
        self._held: set[_Ticket] = set()

    def check_reachable(self, world_size: int, *, inside: bool) -> None:
        """Raise RuntimeError if only this thread itself could free what a new gang needs.

        Args:
            world_size: the ranks of the new gang.
            inside: whether the thread is a rank; else its last gang's ranks are ending just now.
        """
        thread = threading.current_thread()
        with self._lock:
            mine = [ticket for ticket in self._held if ticket.thread is thread]
        held = sum(ticket.count for ticket in mine if inside or ticket.for_session)
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
        ticket = _Ticket(world_size, threading.current_thread(), for_session)
        try:
            try:
                with Deferred() as deferred:
                    with self._lock:
                        self._queue.append(ticket)
                        self._hand_out()
                    deferred.wait([ticket.granted])
                yield ticket.granted.result()
            finally:
                self._give_back(ticket)
        finally:  # once more: Ctrl-C may have broken off the first
            self._give_back(ticket)

    def given_up(self, devices: Sequence[str] | None) -> None:
        """Take it that who holds these will give them back soon, whoever waits for them."""
        for ticket in list(self._held):  # no lock: a garbage collection calls, whoever holds it
            if ticket.devices is devices:
                ticket.thread = None

    def _hand_out(self) -> None:
        """Grant devices to who waits, in order. The lock is held."""
        while self._queue and self._queue[0].count <= len(self._free):
            ticket = self._queue.popleft()
            self._held.add(ticket)
            ticket.devices, self._free = self._free[: ticket.count], self._free[ticket.count :]
            ticket.granted.set_result(ticket.devices)

    def _give_back(self, ticket: _Ticket) -> None:
        """Take back what the ticket has got, or its place in the queue; once more does nothing."""
        with Deferred(), self._lock:
            with suppress(ValueError):
                self._queue.remove(ticket)
            self._held.discard(ticket)
            free, ticket.devices = {*self._free, *ticket.devices}, []
            self._free = [device for device in self.devices or () if device in free]
            self._hand_out()


@dataclass(eq=False)
class _Ticket:
    """A gang's or a session's place in the queue, and then its devices."""

    count: int
    thread: threading.Thread | None
    """Who alone can give the devices back."""
    for_session: bool
    granted: Future[list[str]] = field(default_factory=Future)
    devices: list[str] = field(default_factory=list)
