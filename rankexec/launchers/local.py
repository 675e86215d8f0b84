"""Children on this host: each is started by the guardian, and ended by it.

This is the caller's side; the guardian's is in `_guardian`, the child's in `rankexec._gang.worker`.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rankexec._checks import check_list
from rankexec._gang.call import Seat
from rankexec._gang.environment import base_environment
from rankexec._gang.sockets import PASSES_FILES
from rankexec.contexts import TorchDDPCtx
from rankexec.launchers import Child
from rankexec.launchers._ends import hold_standard
from rankexec.launchers._guarded import GUARDIANS, Guardian
from rankexec.launchers._kinds import privileges
from rankexec.launchers._preloading import check_not_preloading, is_preloading

__all__ = ("LocalLauncher",)

# The first is the default. Libraries of macOS do not stand a fork without exec.
_START_METHODS: tuple[str, ...]
_START_METHODS = ("spawn", "forkserver") if sys.platform == "darwin" else ("forkserver", "spawn")
if not PASSES_FILES:
    _START_METHODS = ("spawn",)


class LocalLauncher:
    """Starts ranks on this host, all of them as children of a guardian process.

    The guardian is started in the background when the first executor is made and ends with the
    last one, or with `close()`. Launchers that need the same guardian share it. On Windows, where a
    process cannot be handed descriptors, ranks are the caller's own children.

    Args:
        start_method: "forkserver": ranks are forked from a guardian that has imported `preload`,
            and torch if the caller has: fresh processes in milliseconds. "spawn": every rank is a
            fresh interpreter. None: the first, but the second on macOS and
            Windows.
        preload: modules for the guardian to import, by name; none may start threads or touch
            CUDA.
        standby: keep as many children forked ahead as the last gang had, until the executors that
            use this launcher are shut down.
        standby_ttl: seconds after which children forked ahead and not used are ended.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        start_method: str | None = None,
        *,
        preload: Iterable[str] = (),
        standby: bool = False,
        standby_ttl: float = 60.0,
    ) -> None:
        start_method = _START_METHODS[0] if start_method is None else start_method
        if start_method not in _START_METHODS:
            raise ValueError(f"start_method takes one of {_START_METHODS}, got {start_method!r}")
        if isinstance(standby_ttl, bool) or not isinstance(standby_ttl, (int, float)):
            raise TypeError(f"standby_ttl takes seconds above 0, got {standby_ttl!r}")
        if not standby_ttl > 0:
            raise ValueError(f"standby_ttl takes seconds above 0, got {standby_ttl!r}")
        self.start_method = start_method
        self.preload = _checked_preload(preload)
        self.standby = bool(standby)
        self.standby_ttl = float(standby_ttl)
        self._privileges: tuple[Any, ...] = ()
        self._leases = 0
        self._lock = threading.RLock()  # a finalizer of this thread may release
        if start_method == "spawn" and (self.preload or self.standby):
            raise ValueError("preload and standby need start_method='forkserver'")

    def lease(self, preload: Sequence[str] = ()) -> None:
        """Start the guardian in the background, if there is none yet."""
        hold_standard()
        with self._lock:
            self._leases += 1
        GUARDIANS.lease()
        try:
            if PASSES_FILES and not is_preloading():
                self._privileges = privileges()  # each gang has its lease, as it is submitted
                self.find_guardian(base_environment(), preload)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """End what is parked with this launcher's last lease, the guardian with the last of all."""
        with self._lock:
            self._leases -= 1
            if self.standby and not self._leases:
                GUARDIANS.park_no_more(self)
        GUARDIANS.release()

    def close(self) -> None:
        """End every guardian of this process now, with all its ranks; used again, it restarts."""
        GUARDIANS.close()
        if not PASSES_FILES:
            from rankexec.launchers._unguarded import kill_all

            kill_all()

    def find_guardian(
        self, environment: Mapping[str, str], preload: Sequence[str] = ()
    ) -> Guardian:
        """Return a living guardian for a rank with this environment.

        Torch is preloaded if the caller has it: to import it costs a second, and ranks of a caller
        without it would wait for nothing.
        """
        if self.start_method == "spawn":
            return GUARDIANS.get(self._privileges, environment, None)
        torch = TorchDDPCtx.preload if "torch" in sys.modules else ()
        names = tuple(dict.fromkeys([*torch, *preload, *self.preload]))
        return GUARDIANS.get(self._privileges, environment, names)

    def start(
        self,
        seats: Sequence[Seat],
        environments: Sequence[Mapping[str, str]],
        preparation: dict[str, Any],
    ) -> Iterator[Child]:
        """Start the processes of a gang, one by one; each is there soon after it is yielded."""
        check_not_preloading()
        # Imported here, as both bring multiprocess along.
        if not PASSES_FILES:
            from rankexec.launchers._unguarded import start_unguarded

            yield from start_unguarded(seats, environments, preparation)
            return
        from rankexec.launchers._popen import RankProcess

        taken, fork = [], self.start_method != "spawn"
        for seat, environment in zip(seats, environments, strict=True):
            find = partial(self.find_guardian, environment)
            process = RankProcess(
                seat, environment, preparation, find, fork=fork, standby=self.standby
            )
            process.start()
            taken.append(process.key)
            yield process
        if self.standby and seats:
            process.guardian.park(self, len(seats), self.standby_ttl, taken)


def _checked_preload(preload: Any) -> tuple[str, ...]:
    names = tuple(check_list("preload takes a list of module names", preload, str))
    for name in names:
        try:
            found = importlib.util.find_spec(name.partition(".")[0])
        except ValueError:  # for instance "", or a module without a spec
            found = None
        if found is None:
            raise ValueError(f"preload names {name!r}, and no such module can be found")
    return names
