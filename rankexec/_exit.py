"""The end of the interpreter: executors that were not shut down finish what they have."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # its hook is to be registered first: it runs last
import os
import sys
import threading
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Protocol

from rankexec._gang.deferred import Deferred

__all__ = ("at_exit", "is_exiting")


class Living(Protocol):
    """What an executor holds."""

    def finish_at_exit(self) -> None:
        """Wait until all is over. Raises KeyboardInterrupt for Ctrl-C."""

    def cancel_all(self) -> None:
        """End all, whatever it does."""


_living: weakref.WeakSet[Living] = weakref.WeakSet()
_exiting = False


def at_exit(living: Living) -> None:
    """Have it finished when the interpreter exits, unless nobody holds it any more."""
    _living.add(living)


def is_exiting() -> bool:
    """Return whether the interpreter exits, and nothing more can be begun."""
    return _exiting


def _exit() -> None:
    """Run before the standard library's pools join their threads, which no Ctrl-C breaks off."""
    global _exiting  # noqa: PLW0603  # the interpreter exits once
    _exiting = True
    living = list(_living)
    with Deferred():
        interrupted = _is_interrupted()
        if interrupted:
            _cancel(living)
        try:
            with ExitStack() as stack:
                for one in living:
                    stack.callback(_finish, one, living)
        except KeyboardInterrupt:
            if not interrupted:  # else it has been told already
                raise


def _finish(one: Living, living: Iterable[Living]) -> None:
    try:
        one.finish_at_exit()
    except KeyboardInterrupt:
        _cancel(living)
        raise


def _cancel(living: Iterable[Living]) -> None:
    for one in living:
        one.cancel_all()


def _is_interrupted() -> bool:
    """Return whether the program ends because nobody has caught a KeyboardInterrupt.

    The interpreter notes what it has shown a traceback of. A shell does, too, and goes on.
    """
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_living.clear)

# `atexit` would be too late: the pools' threads are joined before its functions run. The standard
# library's own pools use this hook, private as it is (3.9 to 3.14).
threading._register_atexit(_exit)  # type: ignore[attr-defined]  # see above
