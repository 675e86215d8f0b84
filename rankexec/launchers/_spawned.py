"""A rank that is a fresh interpreter, as the guardian starts it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

__all__ = ("exec_rank",)


def exec_rank(
    command: list[str], environment: Mapping[str, str] | None, news: int, ends: list[int]
) -> int:
    """Start a fresh interpreter; return its pid."""
    channel, stacks, stdout, stderr = ends
    process = subprocess.Popen(
        [*command[:-1], *map(str, (channel, stacks, os.getpid(), news)), command[-1]],
        env=environment,
        pass_fds=(channel, stacks, news),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    process.returncode = 0  # the guardian reaps it, with its resource usage
    return process.pid
