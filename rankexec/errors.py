"""Every error of rankexec.

RankExecError                     anything that rankexec itself has to say
├── NotShippable                  also pickle.PicklingError: something of the call cannot travel
├── RankRaised                    a rank raised what the caller cannot rebuild
├── RankDied                      also BrokenExecutor: a rank ended without a word
├── GangTimeout                   also TimeoutError: the gang took longer than `timeout`
├── SessionLost                   also BrokenExecutor: a session's ranks are gone
├── LauncherDied                  also BrokenExecutor: what starts the ranks was killed
└── PreloadError                  a module cannot be preloaded into the forkserver

An exception that a rank raises and that the caller can rebuild is raised as itself, with
`rank_outcomes` (a list by rank of `Returned`, `Raised`, `Died` or None for a rank that was ended
before it reported) and, from another process, the remote traceback as `__cause__`.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import signal
import sys
from concurrent.futures import BrokenExecutor

__all__ = (
    "GangTimeout",
    "LauncherDied",
    "NotShippable",
    "PreloadError",
    "RankDied",
    "RankExecError",
    "RankRaised",
    "RemoteTraceback",
    "SessionLost",
)


class RankExecError(Exception):
    """The base of every error that rankexec raises by itself.

    Attributes:
        rank_outcomes: what each rank came to, by rank; empty if no gang was started.
    """

    rank_outcomes: list[object]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.rank_outcomes = []

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses build their message from named values, so `cls(*args)` could not rebuild them.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(
    cls: type[RankExecError], args: tuple[object, ...], state: dict[str, object]
) -> RankExecError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NotShippable(RankExecError, pickle.PicklingError):
    """Something of the call (or a rank's result) cannot be pickled; no rank was started for it.

    Attributes:
        what: the argument, variable or result that cannot travel, in words.
    """

    def __init__(self, what: str, reason: str, hint: str = "") -> None:
        advice = hint or "make it inside the function, or pass what it is made from"
        super().__init__(f"{what} cannot be shipped to another process: {reason}; {advice}")
        self.what = what


class RankRaised(RankExecError):
    """A rank raised an exception that cannot be pickled, or whose class the caller does not have.

    Attributes:
        rank: the rank that raised.
        type_name: qualified name of the exception's class.
        text: `str()` of the exception.
        traceback_text: the formatted traceback, as the rank saw it.
    """

    def __init__(self, rank: int, type_name: str, text: str, traceback_text: str) -> None:
        super().__init__(
            f"rank {rank} raised {type_name}: {text} (the exception itself could not be brought "
            f"to the caller; its traceback is in .traceback_text)"
        )
        self.rank = rank
        self.type_name = type_name
        self.text = text
        self.traceback_text = traceback_text


class RankDied(RankExecError, BrokenExecutor):
    """A rank's process ended before it reported: a signal, `os._exit`, the kernel's OOM killer.

    The executor stays usable: the next gang has fresh processes.

    Attributes:
        rank, world_size, pid, host: which process it was.
        exitcode: its exit code; negative is minus the signal's number.
        signal_name: for instance "SIGSEGV", or None if no signal ended it.
        stderr_tail: the last lines that it wrote to stderr.
    """

    def __init__(
        self, rank: int, world_size: int, pid: int, host: str, exitcode: int, stderr_tail: str = ""
    ) -> None:
        self.signal_name = _signal_name(exitcode)
        how = f"killed by {self.signal_name}" if self.signal_name else f"exit code {exitcode}"
        tail = f"; the end of its stderr:\n{stderr_tail}" if stderr_tail else ""
        super().__init__(
            f"rank {rank} of {world_size} (pid {pid} on {host}) died: "
            f"{how}{_likely(exitcode)}{tail}"
        )
        self.rank = rank
        self.world_size = world_size
        self.pid = pid
        self.host = host
        self.exitcode = exitcode
        self.stderr_tail = stderr_tail


def _signal_name(exitcode: int) -> str | None:
    if exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def _likely(exitcode: int) -> str:
    if exitcode < 0 and _signal_name(exitcode) == "SIGKILL":
        return " (often the kernel, out of memory: see dmesg)"
    return ""


if sys.version_info >= (3, 11):
    _TimeoutError = TimeoutError
else:  # two classes there, and both are caught by those who wait for futures

    class _TimeoutError(TimeoutError, concurrent.futures.TimeoutError):
        pass


class GangTimeout(RankExecError, _TimeoutError):
    """The gang did not finish within the executor's `timeout`; all its ranks were ended.

    Attributes:
        timeout: the limit in seconds.
        stacks: rank to the Python stacks of all its threads at that moment, as text.
    """

    def __init__(self, timeout: float, stacks: dict[int, str], doing: str = "finish") -> None:
        none = "(no stack: it was still starting, or did not answer)"
        shown = "".join(
            f"\n--- rank {rank} ---\n{text.rstrip() or none}"
            for rank, text in sorted(stacks.items())
        )
        super().__init__(f"the gang did not {doing} within {timeout:g} s{shown}")
        self.timeout = timeout
        self.stacks = stacks


class SessionLost(RankExecError, BrokenExecutor):
    """A session's ranks are gone, and with them all that they held; `restart()` starts new ones.

    Attributes:
        rank, pid: the rank that died, or that could not be broken off its call and was ended; None
            if none has.
        exitcode: its exit code; negative is minus the signal's number; None if nobody could see it.
        signal_name: for instance "SIGSEGV", or None if no signal ended it.
    """

    def __init__(
        self, rank: int | None, pid: int | None, exitcode: int | None, *, stuck: bool = False
    ) -> None:
        self.signal_name = None if exitcode is None else _signal_name(exitcode)
        how = f"killed by {self.signal_name}" if self.signal_name else f"exit code {exitcode}"
        died = "died" if exitcode is None else f"died: {how}{_likely(exitcode)}"
        if stuck:
            died = "could not be broken off a call that was over, and was ended"
        who = "its ranks are gone" if rank is None else f"rank {rank} (pid {pid}) {died}"
        super().__init__(f"the session is lost: {who}; restart() starts it with new ranks")
        self.rank = rank
        self.pid = pid
        self.exitcode = exitcode


class LauncherDied(RankExecError, BrokenExecutor):
    """The helper process that starts this host's ranks was killed while a gang ran.

    The kernel ended the gang's ranks with it. The next gang starts a new helper.

    Attributes:
        rank, pid: one of the ranks.
    """

    def __init__(self, rank: int, pid: int | None) -> None:
        super().__init__(
            f"the helper process that starts this host's ranks was killed while rank {rank} "
            f"(pid {pid}) ran; the ranks ended with it; the next gang starts a new one"
        )
        self.rank = rank
        self.pid = pid


class PreloadError(RankExecError):
    """A module named in `preload` cannot be in the process that ranks are forked from.

    Attributes:
        module: its name.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(
            f"{module!r} cannot be preloaded: {reason}; leave it out of preload (each rank then "
            f"imports it by itself), or use LocalLauncher(start_method='spawn')"
        )
        self.module = module


class RemoteTraceback(Exception):
    """The traceback of another process, as the `__cause__` of what it raised there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
