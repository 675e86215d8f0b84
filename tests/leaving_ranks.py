"""What ranks of the tests leave to be done at their end: each leaves an "x" in a file."""

from __future__ import annotations

import atexit
import ctypes
import gc
import gzip
import logging.handlers
import math
import multiprocessing
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing import shared_memory
from typing import Any

kept: Any = None


def on_rank_1(action: Callable[..., Any], *args: Any) -> Any:
    """Do something there; nothing anywhere else."""
    return action(*args) if os.environ["RANK"] == "1" else None


def write(path: str) -> None:
    """Write, and close."""
    with open(path, "w", encoding="ascii") as file:
        file.write("x")


# --- files that are not closed ---


def in_a_global(path: str) -> None:
    """Held by a module of the rank's."""
    global kept  # noqa: PLW0603  # what it is about
    kept = open(path, "w", encoding="ascii")  # noqa: SIM115  # what it is about
    kept.write("x")


def in_bytes(path: str) -> None:
    """Without a layer of text."""
    global kept  # noqa: PLW0603  # what it is about
    kept = open(path, "wb")  # noqa: SIM115  # what it is about
    kept.write(b"x")


def in_a_module(path: str) -> None:
    """Held by a module that the guardian has imported."""
    math.kept = open(path, "w", encoding="ascii")  # noqa: SIM115  # what it is about
    math.kept.write("x")


def in_a_cycle(path: str) -> None:
    """Held by an object that holds itself: its parts are finalized in any order."""
    global kept  # noqa: PLW0603  # or the collector might find it sooner, and lose what it holds
    kept = [open(path, "w", encoding="ascii")]  # noqa: SIM115  # what it is about
    kept[0].write("x")
    kept.append(kept)


def frozen(path: str) -> None:
    """Hidden from the collector, as training programs do to save its time."""
    in_a_global(path)
    gc.freeze()


def compressed(path: str) -> None:
    """Whose end is written when it is closed."""
    global kept  # noqa: PLW0603  # what it is about
    kept = gzip.open(path, "wt", encoding="ascii")  # noqa: SIM115  # what it is about
    kept.write("x")


def of_c(path: str) -> None:
    """Of C's own kind."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fputs(b"x", ctypes.c_void_p(libc.fopen(os.fsencode(path), b"w")))


def of_a_logger(path: str) -> None:
    """Which a handler of logging writes to later."""
    target = logging.FileHandler(path)
    target.setFormatter(logging.Formatter("%(message)s"))
    target.terminator = ""
    logger = logging.getLogger("leaving_ranks")
    logger.addHandler(logging.handlers.MemoryHandler(1000, target=target))
    logger.error("x")


# --- what is to be called ---


def at_exit(path: str) -> None:
    """By atexit, after others that raise."""
    atexit.register(write, path)
    atexit.register(int, "fails at exit")


def at_the_end_of_c(path: str) -> None:
    """By the C library's own exit functions, as HDF5 does: one unlinks a file."""
    libc = ctypes.CDLL(None)
    write(path)
    libc.strdup.restype = ctypes.c_void_p
    gone = ctypes.c_void_p(libc.strdup(os.fsencode(path + ".gone")))
    write(path + ".gone")
    libc["__cxa_atexit"](ctypes.cast(libc.unlink, ctypes.c_void_p), gone, None)


def by_finalize(path: str) -> None:
    """By weakref.finalize, for an object that lives on."""
    weakref.finalize(write, write, path)


class _WritesAtLast:
    def __init__(self, path: str) -> None:
        self.path = path

    def __del__(self) -> None:
        write(self.path)


def by_del(path: str) -> None:
    """By `__del__`, of an object that lives on."""
    global kept  # noqa: PLW0603  # what it is about
    kept = _WritesAtLast(path)


def by_a_temporary_directory(path: str) -> None:
    """By tempfile: the directory is gone afterwards, and with it this file."""
    global kept  # noqa: PLW0603  # what it is about
    kept = tempfile.TemporaryDirectory()
    with open(path, "w", encoding="ascii") as file:
        file.write(kept.name)


# --- threads ---


def by_a_thread(path: str) -> None:
    """By one that takes longer than the ranks had once: an asynchronous checkpoint."""

    def later() -> None:
        time.sleep(2.5)
        write(path)

    threading.Thread(target=later).start()


def by_a_queue(path: str) -> None:
    """By a daemon thread of multiprocessing's, which its own finalizer waits for."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    context.Process(target=_write_what_comes, args=(queue, path)).start()
    queue.put("x" * (1 << 20))


def _write_what_comes(queue: Any, path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(queue.get()[0])


def start_saver(seconds: float = 600.0) -> None:
    """Start a thread that the rank's end waits for."""
    threading.Thread(target=time.sleep, args=(seconds,), name="saver").start()


def hang_at_exit() -> None:
    """Have the rank's end wait for an exit function."""
    atexit.register(_hang)


def _hang() -> None:
    time.sleep(600)


# --- shared memory ---


def make_block(then: Callable[[], Any]) -> Any:
    """Make a block and a semaphore that nobody unlinks."""
    global kept  # noqa: PLW0603  # what it is about
    name = f"leaving_{os.getpid()}"
    block = shared_memory.SharedMemory(name, create=True, size=64)
    kept = (block, multiprocessing.get_context("spawn").Lock())
    return then()


def write_to_block(name: str) -> int:
    """Attach, write and close."""
    block = shared_memory.SharedMemory(name)
    block.buf[int(os.environ["RANK"])] = 7
    block.close()
    return os.getpid()


def take_block_away(name: str) -> None:
    """Attach a block of another process's, and unlink it."""
    block = shared_memory.SharedMemory(name)
    block.close()
    block.unlink()


def make_block_in_a_fork() -> None:
    """Have a process of this rank's make a block, and unlink it here."""
    name = f"leaving_{os.getpid()}"
    make = partial(shared_memory.SharedMemory, name, create=True, size=64)
    shared_memory.SharedMemory(f"{name}_0", create=True, size=64).unlink()  # starts the tracker
    process = multiprocessing.get_context("fork").Process(target=make)
    process.start()
    process.join()
    take_block_away(name)
