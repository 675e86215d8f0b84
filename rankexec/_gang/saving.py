"""Leaving a process group while other threads are at work in it: asynchronous checkpoints are."""

from __future__ import annotations

import os
import sys
import threading
import time

from rankexec._torch import destroy_group

__all__ = ("ends_after_call", "leave_group")

SAVE_SECONDS = 60.0
"""How long a group waits for threads that use it, before it is destroyed."""


def leave_group(kind: type[BaseException] | None, *_: object) -> None:
    """Destroy the default group; if nothing was raised, when no other thread is at work in it.

    torch's asynchronous checkpoints are such threads, and without their group they fail without a
    word. In a child whose call is all that it runs, nobody waits for them here.
    """
    users = [] if kind is not None else _at_work_in_torch_distributed()
    if users and _one_call:
        # No daemon: the end of the process waits for it, as for the others.
        threading.Thread(target=_destroy_after, args=(users,), name="rankexec-destroy").start()
    else:
        _destroy_after(users)


def _destroy_after(users: list[threading.Thread]) -> None:
    limit = time.monotonic() + SAVE_SECONDS
    for thread in users:
        thread.join(max(0.0, limit - time.monotonic()))
    destroy_group()


def _at_work_in_torch_distributed() -> list[threading.Thread]:
    """Return the threads, other than this one and daemons, that have it on their stack."""
    import torch.distributed as dist

    folder = os.path.dirname(dist.__file__)
    frames = sys._current_frames()
    found = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread is threading.current_thread():
            continue
        while frame is not None and not frame.f_code.co_filename.startswith(folder):
            frame = frame.f_back
        if frame is not None:
            found.append(thread)
    return found


_one_call = False


def ends_after_call() -> None:
    """Say that this process, a child, runs one call and ends."""
    global _one_call  # noqa: PLW0603  # a process becomes a rank once
    _one_call = True
