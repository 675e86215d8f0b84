"""A rank's resource trackers: helpers that remove shared memory and semaphores that it has made.

multiprocessing starts one in each process that needs it, and so do its twins, multiprocess and
loky (a copy of which is in joblib). It waits for the end of a pipe, which comes when the last
process that holds the other end is gone; then it removes what is left of what was registered. The
guardian kills all that a rank leaves behind, so it is told which are trackers: they may finish.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import multiprocess.resource_tracker
import multiprocess.util

__all__ = ("NEWS", "prepare_trackers")

NEWS = struct.Struct("i")
"""What is written when a tracker has been started: its pid."""

_BLOCK = "shared_memory"


def prepare_trackers(news: int) -> None:
    """Have this process, a rank or what ranks are forked from, tell of the trackers it starts.

    Args:
        news: a descriptor to tell it on, as `NEWS`.
    """
    import multiprocessing.resource_tracker
    import multiprocessing.util

    utils: list[Any] = [multiprocessing.util, multiprocess.util]
    for util in utils:
        util.spawnv_passfds = partial(_spawn, util.spawnv_passfds, news)
    for module in (multiprocessing.resource_tracker, multiprocess.resource_tracker):
        _Owned(module)


def _spawn(
    spawn: Callable[[Any, Any, Any], int], news: int, path: Any, args: Any, passfds: Sequence[int]
) -> int:
    # All of them have this function start it; what else it starts are processes of the user's.
    if not sys._getframe(1).f_globals.get("__name__", "").endswith("resource_tracker"):
        return spawn(path, args, passfds)
    # What a rank that was killed leaves is no news; and its last words are to be its own.
    executable, *rest = args
    pid = spawn(path, [executable, "-W", "ignore:resource_tracker", *rest], passfds)
    os.write(news, NEWS.pack(pid))  # nothing is registered before this returns
    return pid


class _Owned:
    """Registers with a tracker only blocks of shared memory that this process has created.

    `SharedMemory` (before Python 3.13: always) registers a block to which it merely attaches, too.
    The end of this process's tracker would take it away from its owner, the caller for instance.
    """

    def __init__(self, module: ModuleType) -> None:
        self._tracker: Any = module._resource_tracker
        self._created: set[str] = set()
        module.register = self._register  # type: ignore[attr-defined]  # who asks looks it up there
        module.unregister = self._unregister  # type: ignore[attr-defined]  # likewise

    def _register(self, name: str, kind: str) -> None:
        if kind == _BLOCK:
            # In SharedMemory.__init__; whoever else calls this means it.
            if not sys._getframe(1).f_locals.get("create", True):
                return
            self._created.add(name)
        self._tracker.register(name, kind)

    def _unregister(self, name: str, kind: str) -> None:
        if kind == _BLOCK and name not in self._created:
            if self._tracker._fd is None:
                return
            # It may be a child's, forked from this process, or not known: then the tracker would
            # print a KeyError.
            self._tracker.register(name, kind)
        self._created.discard(name)
        self._tracker.unregister(name, kind)
