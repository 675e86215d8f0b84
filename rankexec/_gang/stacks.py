"""What faulthandler, or a rank without a guardian, has written of a rank's threads: read again."""

from __future__ import annotations

import re
import sysconfig
import threading
from collections.abc import Mapping

__all__ = ("waited_for",)

_THREAD = re.compile(
    r"^(?:Current thread|Thread) (\S+)(?: \[.*\])?( \(most recent call first\))?:$"
)
_FRAME = re.compile(r'^  File "(.*)", line (\d+),? in (.*)$')
_SHUTDOWN = ("_shutdown", "wait_for_thread_shutdown")


def waited_for(stacks: str, names: Mapping[int, str]) -> str:
    """Return, in words, which threads a process that does not end still has, and where they are.

    Args:
        stacks: of all its threads.
        names: by ident, the main thread and those that are no daemons, as the process has told
            them; empty if there were none but the main thread, or if it has not come so far.
    """
    found = _threads(stacks)
    known = {f"0x{ident:016x}": name for ident, name in names.items()}
    for main in list(found)[-1:]:
        known.setdefault(main, threading.main_thread().name)
    parts = [
        f"thread {known.get(who, who)!r} in {_where(found[who])}"
        for who in found
        if (who in known or who in names.values()) and not _waits_for_threads(found[who])
    ]
    return ", ".join(parts) or "something that its stacks do not show"


_Frame = tuple[str, str, str]
"""File, line and function."""


def _threads(stacks: str) -> dict[str, list[_Frame]]:
    """Return each thread's frames, the innermost first; the main thread is the last."""
    found: dict[str, list[_Frame]] = {}
    frames: list[_Frame] = []
    innermost_first = True
    for line in stacks.splitlines():
        if thread := _THREAD.match(line):
            frames = found[thread[1]] = []
            innermost_first = thread[2] is not None
        elif frame := _FRAME.match(line):
            frames.insert(len(frames) if innermost_first else 0, (frame[1], frame[2], frame[3]))
    return found


def _waits_for_threads(frames: list[_Frame]) -> bool:
    return any(function in _SHUTDOWN for _, _, function in frames)


def _where(frames: list[_Frame]) -> str:
    """Return the innermost function that is not of the standard library, else the innermost."""
    standard = sysconfig.get_paths()["stdlib"]
    users = [f for f in frames if not f[0].startswith((standard, "<"))] or frames
    if not users:
        return "no Python code"
    file, line, function = users[0]
    return f"{function} ({file}:{line})"
