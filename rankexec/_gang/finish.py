"""A forked rank's end: what an interpreter does at its own, for what is the rank's.

Python's own finalization takes a forked rank 40 ms, most of it for pages of the guardian's modules
that it touches and thereby copies. So nothing is taken apart here. What is to be done at a
process's end is done: its threads are waited for, its exit functions run, Python's and C's, its
files are flushed, and what has a `__del__` is finalized. Objects that were there before the fork
are frozen, so that the collector lists only the rank's.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

from rankexec._gang import libc, output

__all__ = ("begin", "finish", "flush_files")

_kept: list[Any] = []


def begin() -> None:
    """Note, in a fresh fork, that what is there is the guardian's to finalize."""
    gc.freeze()
    _kept.append([])  # the first that the rank makes: if it is not listed, nothing before is
    libc.exit_begins_here()
    # torch has hundreds of finalizers. To free the old registry would touch them, too.
    finalize: Any = weakref.finalize
    _kept.append(finalize._registry)
    finalize._registry = {}


def finish(code: int) -> NoReturn:
    """End this process as an interpreter does, and in its order."""
    try:
        _try(threading._shutdown)  # type: ignore[attr-defined]  # waits for all that are no daemons
        _try(atexit._run_exitfuncs)  # which prints what they raise, and goes on
        found, files = _own_objects()
        # First of all: of two that hold each other, the inner one may be finalized first.
        _flush(files)
        _finalize(found)
        _flush(files)
        _try(output.flush)
        if code == 0:
            libc.exit_own()
    finally:
        os._exit(code)


def _try(function: Callable[[], object], *, passes: tuple[type[Exception], ...] = ()) -> None:
    """Call; print what it raises, as the interpreter does where nobody can catch it."""
    try:
        function()
    except passes:
        pass
    except BaseException as error:  # it is the user's code; the rest is to be done nevertheless
        with suppress(BaseException):  # stderr may be gone
            named = function.func if isinstance(function, partial) else function
            print(f"Exception ignored in: {named!r}", file=sys.stderr)  # noqa: T201  # as Python's
            traceback.print_exception(type(error), error, error.__traceback__)


def flush_files() -> None:
    """Flush all files: in an interpreter, which loses some of those that are part of a cycle."""
    gc.unfreeze()
    _flush([thing for thing in gc.get_objects() if issubclass(type(thing), io.IOBase)])


def _own_objects() -> tuple[list[Any], list[io.IOBase]]:
    """Return what the rank has made, of that which can hold other objects; and its files."""
    found = everything = gc.get_objects()
    if not any(thing is _kept[0] for thing in found):  # the user has frozen what was there by then
        gc.unfreeze()
        everything = gc.get_objects()  # the guardian's, too: of these only the files count
    return found, [thing for thing in everything if issubclass(type(thing), io.IOBase)]


def _flush(files: list[io.IOBase]) -> None:
    """Flush files, the outer before the inner."""
    for outer in (True, False):
        for file in files:
            if isinstance(file, io.TextIOBase) is outer:
                # It is closed or detached, or nobody reads it any more.
                _try(file.flush, passes=(ValueError, BrokenPipeError))


def _finalize(found: list[Any]) -> None:
    """Call `__del__` on all that is left, as the collector does where objects hold each other."""
    finalizers: dict[type, Any] = {}
    standard = {id(sys.stdout), id(sys.stderr)}  # for what the others may have to say
    for thing in found:
        kind = type(thing)
        if kind not in finalizers:
            finalizers[kind] = _finalizer(kind)
        finalizer = finalizers[kind]
        if finalizer is None or gc.is_finalized(thing) or id(thing) in standard:
            continue
        # Memory that others still look at goes with the process.
        _try(partial(finalizer, thing), passes=(BufferError,))


def _finalizer(kind: type) -> Any:
    """Return a class's `__del__` if it is written in Python; what is written in C frees memory.

    A file's of such a class closes it: that writes the end of a compressed file, or uploads it.
    Those of `io` itself are flushed, and may be in use until the last of the others is closed.
    """
    finalizer = getattr(kind, "__del__", None)
    if kind.__module__ in _ENDS_ONLY:  # whose owners may have something to say on them
        return None
    is_file = issubclass(kind, io.IOBase) and kind.__module__ not in ("_io", "io")
    return finalizer if is_file or isinstance(finalizer, FunctionType) else None


_ENDS_ONLY = ("multiprocessing.connection", "multiprocess.connection")
