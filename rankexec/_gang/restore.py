"""The caller's process as it was: one gang at a time in it, and everything put back afterwards.

os.environ, signal handlers, `__main__` and torch's default group belong to the process, so gangs
with a caller's rank take turns.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rankexec._gang import frameworks
from rankexec._gang.deferred import Deferred
from rankexec._gang.environment import kept_environment
from rankexec._gang.handlers import get_handler, set_handler
from rankexec._gang.main import main_as_module
from rankexec._torch import cuda_in_use
from rankexec.errors import GangTimeout

__all__ = (
    "OwnGroup",
    "as_before",
    "has_group",
    "name_groups_afresh",
    "turn",
)

TURN_WARNING_SECONDS = 10.0
_SIGNALS = tuple(int(number) for number in signal.valid_signals())  # makes 64 enum members a time
_MASKS = hasattr(signal, "pthread_sigmask")


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder = ""
        self.thread: int | None = None


_turn = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turn.__init__)  # type: ignore[misc]  # a fresh lock


@contextmanager
def turn(what: str, timeout: float | None) -> Iterator[None]:
    """Wait until no other gang has a thread of this process as a rank.

    Warns every 10 s, naming the holder. Raises GangTimeout after `timeout` seconds, RuntimeError if
    it is this thread that has the turn: a context's caller side, or a signal's handler, submits.
    """
    if _turn.thread == threading.get_ident():
        raise RuntimeError(
            f"this thread is busy with a gang already, {_turn.holder}, and cannot be a rank of "
            f"another; use an executor with caller_rank=None here"
        )
    try:
        try:
            with Deferred() as deferred:
                _take_turn(timeout, deferred)
                _turn.holder = f"{what} in thread {threading.current_thread().name!r}"
                _turn.thread = threading.get_ident()
            yield
        finally:
            _end_turn()
    finally:  # once more: Ctrl-C may have broken off the first
        _end_turn()


def _take_turn(timeout: float | None, deferred: Deferred) -> None:
    give_up = None if timeout is None else time.monotonic() + timeout
    while True:
        left = TURN_WARNING_SECONDS if give_up is None else give_up - time.monotonic()
        if deferred.acquire(_turn.lock, min(TURN_WARNING_SECONDS, left)):
            return
        if give_up is not None and time.monotonic() >= give_up:
            raise GangTimeout(timeout or 0.0, {}, f"get its turn after {_turn.holder}")
        warnings.warn(
            f"a gang waits for its turn: {_turn.holder} runs in this process; gangs with a "
            f"caller_rank run one at a time (caller_rank=None runs them side by side)",
            RuntimeWarning,
            stacklevel=_users_level(),
        )


def _end_turn() -> None:
    with Deferred():
        if _turn.thread == threading.get_ident():
            _turn.thread = None
            _turn.lock.release()


def _users_level() -> int:
    """Return the `stacklevel` of the line outside this package that waits."""
    here = os.path.dirname(os.path.dirname(__file__))
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(here) or frame.f_globals.get("__name__") == "contextlib"
    ):
        frame = frame.f_back
        level += 1
    return level


@contextmanager
def as_before(*, keep_group: bool = False) -> Iterator[None]:
    """Put back what a rank changes in its process, and only that; in a session its group stays.

    Setting every signal handler again would remove faulthandler's, which Python cannot see.
    """
    handlers = {number: get_handler(number) for number in _SIGNALS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if _MASKS else set()
    main, sys.modules["__main__"] = sys.modules["__main__"], main_as_module()
    cwd = _directory()
    excepthook = sys.excepthook  # torch wraps it for each group, to print the rank
    group, device = keep_group or has_group(), _cuda_device()
    name_groups_afresh()
    try:
        with kept_environment():
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and get_handler(number) is not handler:
                    set_handler(number, handler)
        if _MASKS:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        sys.modules["__main__"] = main
        sys.excepthook = excepthook
        if cwd is not None and _directory() != cwd:
            _go_back(cwd)
        if not group:
            _end_group()
        if device is not None and _cuda_device() != device:
            sys.modules["torch"].cuda.set_device(device)
        name_groups_afresh()
        frameworks.leave()


def _directory() -> str | None:
    """Return the working directory; None if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _go_back(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:  # the function itself may have removed it
        warnings.warn(f"the caller's working directory is not restored: {error}", stacklevel=2)


def has_group() -> bool:
    """Return whether this process has a default process group; torch is not imported for that."""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


class OwnGroup:
    """The default group that calls of a session have made in this process, while it is there."""

    def __init__(self) -> None:
        self._group: object = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what the body makes of the default group."""
        before = _default_group()
        try:
            yield
        finally:
            if (now := _default_group()) is not before:
                self._group = now

    def end(self) -> None:
        """Destroy it, unless it is gone. Nothing is kept: a reference would keep its threads."""
        group, self._group = self._group, None
        if group is not None and group is _default_group():
            _end_group()


def _default_group() -> object:
    return sys.modules["torch.distributed"].group.WORLD if has_group() else None


def _cuda_device() -> int | None:
    cuda = cuda_in_use()
    return None if cuda is None else cuda.current_device()


def _end_group() -> None:
    if not has_group():
        return
    try:
        sys.modules["torch.distributed"].destroy_process_group()
    except Exception as error:  # a group whose peers are gone
        warnings.warn(f"the group of a gang was not destroyed: {error}", stacklevel=2)


def name_groups_afresh() -> None:
    """Let this process's next group have the name that it gets in a fresh process.

    torch names groups by a counter, which it resets when the default group is destroyed, but not
    when `init_process_group` fails: the caller would then wait for ever for peers that meet under
    another name.
    """
    world = getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_world", None)
    if getattr(world, "group_count", 0) and not has_group():
        world.group_count = 0  # type: ignore[union-attr]  # None has none
