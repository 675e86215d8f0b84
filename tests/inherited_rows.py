"""What a process has, by the rows of the table in docs/guide.md: how to change it, and look at it.

Run as a program, with a launcher's kind and `torch` or `plain`: looks into ranks, changes all of
it in this process, looks into this process and into ranks again, and prints what it has seen.
"""

from __future__ import annotations

import builtins
import contextvars
import ctypes
import decimal
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from rankexec import LocalLauncher, RankedExecutor


class Row(NamedTuple):
    """One of them. `change` may raise OSError where the system does not let it."""

    change: Callable[[], object]
    look: Callable[[], object]


VARIABLE = contextvars.ContextVar("VARIABLE", default=0)
state = "as it is imported"


def torch() -> Any:
    """Return torch, which is not imported for the other rows."""
    return sys.modules["torch"]


# --- how each is changed, where that is no expression ---


def fewer_cores() -> None:
    """Have one core."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


def lower_limits() -> None:
    """Lower all that a rank can run with, by one; the soft ones by two."""
    for name in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_STACK", "RLIMIT_NPROC"):
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        most = 2**40 if most == resource.RLIM_INFINITY else most
        resource.setrlimit(number, (most - 2, most - 1))


def ignore() -> None:
    """Ignore what a program that is started by nohup ignores, and another signal."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def change_directory() -> None:
    """Go to a new one."""
    os.mkdir("elsewhere")
    os.chdir("elsewhere")


def change_zone() -> None:
    """Be in Tokyo, whose time zone needs no file of the system's."""
    os.environ["TZ"] = "JST-9"
    time.tzset()


def open_a_file() -> None:
    """Open one that a program would inherit."""
    os.set_inheritable(os.open("held", os.O_CREAT | os.O_RDWR), True)


def descriptors() -> list[str]:
    """Return the descriptors of files in a directory of the test's."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.path.basename(os.readlink(f"/proc/self/fd/{name}")))
        except OSError:  # of the directory itself
            continue
    return [name for name in found if name == "held"]


def change_stdin() -> None:
    """Read from a file."""
    Path("input").write_text("a line\n")
    os.dup2(os.open("input", os.O_RDONLY), 0)


def unshare() -> None:
    """Have a host name of one's own."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x04000000):
        raise OSError(ctypes.get_errno(), "unshare")


def groups_of_processes() -> list[str]:
    """Return the namespace of host names, and the control groups."""
    return [os.readlink("/proc/thread-self/ns/uts"), Path("/proc/self/cgroup").read_text()]


def change_interpreter() -> None:
    """Change what the interpreter can be tuned by."""
    sys.setswitchinterval(0.25)
    gc.set_threshold(123)
    gc.disable()
    threading.stack_size(2**20)


def observe() -> None:
    """Turn on what watches a program."""
    faulthandler.enable()
    tracemalloc.start()
    threading.setprofile(print)


def hook(*args: object) -> None:
    """Be anybody's hook or handler."""


def look_at_hooks() -> list[object]:
    """Return which hooks there are, and a builtin that is none."""
    return [sys.excepthook.__name__, sys.displayhook.__name__, hasattr(builtins, "spam")]


def set_hooks() -> None:
    """Set them."""
    sys.excepthook = sys.displayhook = hook
    builtins.spam = 1


def set_module() -> None:
    """Change a variable of a module that ranks import."""
    __import__("inherited_rows").state = "changed"


def autocast() -> None:
    """Set torch's modes."""
    torch().set_grad_enabled(False)
    torch().autocast("cpu", dtype=torch().bfloat16).__enter__()


def set_debug_level() -> None:
    """Have torch check collectives."""
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "INFO"
    torch().distributed.set_debug_level_from_env()


def ignored() -> list[bool]:
    """Return which of some signals are ignored."""
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
    return [signal.getsignal(number) == signal.SIG_IGN for number in numbers]


TAKEN = {
    "CPU affinity": Row(fewer_cores, lambda: sorted(os.sched_getaffinity(0))),
    "priority (`nice`)": Row(lambda: os.nice(3), lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    "scheduling policy": Row(
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda: os.sched_getscheduler(0),
    ),
    "resource limits, soft and hard": Row(
        lower_limits, lambda: [resource.getrlimit(number) for number in range(16)]
    ),
    "SIGHUP, SIGQUIT, SIGUSR1, SIGALRM and the terminal's, where ignored": Row(ignore, ignored),
    "umask": Row(lambda: os.umask(0o027), lambda: Path("/proc/self/status").read_text().split()[3]),
    "environment variables": Row(
        lambda: os.environ.update(RANKEXEC_TEST_A="1"), lambda: os.environ.get("RANKEXEC_TEST_A")
    ),
    "time zone, by `TZ`": Row(change_zone, lambda: [time.tzname, time.localtime(0).tm_hour]),
    "working directory": Row(change_directory, os.getcwd),
    "`sys.path`": Row(lambda: sys.path.append("/nowhere"), lambda: "/nowhere" in sys.path),
    "`sys.argv`": Row(lambda: sys.argv.append("more"), lambda: sys.argv[1:]),
    "`multiprocessing`'s start method": Row(
        lambda: multiprocessing.set_start_method("spawn"),
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "`sys.setrecursionlimit`": Row(lambda: sys.setrecursionlimit(2345), sys.getrecursionlimit),
}
"""Ranks have what the caller has."""

KEPT = {
    "signal handlers": Row(
        lambda: signal.signal(signal.SIGUSR2, hook), lambda: str(signal.getsignal(signal.SIGUSR2))
    ),
    "blocked signals": Row(
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}),
        lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    ),
    "timers (`setitimer`, `alarm`)": Row(
        lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    ),
    "session, process group, controlling terminal": Row(
        os.setsid, lambda: [os.getsid(0), os.getpgrp()]
    ),
    "stdin": Row(change_stdin, lambda: os.readlink("/proc/self/fd/0")),
    "open files and sockets": Row(open_a_file, descriptors),
    "control groups, namespaces": Row(unshare, groups_of_processes),
    "OOM score (`oom_score_adj`)": Row(
        lambda: Path("/proc/self/oom_score_adj").write_text("300"),
        lambda: Path("/proc/self/oom_score_adj").read_text(),
    ),
    "I/O priority": Row(
        lambda: psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE),
        lambda: str(psutil.Process().ionice()),
    ),
    "`warnings` filters": Row(
        lambda: warnings.filterwarnings("ignore", "spam"),
        lambda: any("spam" in str(shown) for shown in warnings.filters),
    ),
    "`logging` handlers and levels": Row(
        lambda: logging.basicConfig(level=logging.DEBUG),
        lambda: [logging.root.level, len(logging.root.handlers)],
    ),
    "`locale.setlocale`": Row(
        lambda: locale.setlocale(locale.LC_NUMERIC, "C.UTF-8"),
        lambda: locale.setlocale(locale.LC_NUMERIC),
    ),
    "`contextvars`, `decimal`'s context": Row(
        lambda: [VARIABLE.set(1), decimal.setcontext(decimal.Context(prec=5))],
        lambda: [VARIABLE.get(), decimal.getcontext().prec],
    ),
    "`socket.setdefaulttimeout`": Row(
        lambda: socket.setdefaulttimeout(77.0), socket.getdefaulttimeout
    ),
    "`sys.setswitchinterval`, `gc` settings, `threading.stack_size`": Row(
        change_interpreter,
        lambda: [sys.getswitchinterval(), gc.isenabled(), gc.get_threshold(), stack_size()],
    ),
    "`faulthandler`, `tracemalloc`, profilers": Row(
        observe,
        lambda: [faulthandler.is_enabled(), tracemalloc.is_tracing(), str(threading._profile_hook)],
    ),
    "`sys.excepthook`, `sys.displayhook`, added builtins": Row(set_hooks, look_at_hooks),
    "changed variables of modules": Row(set_module, lambda: __import__("inherited_rows").state),
}
"""Ranks have what they had before."""

TAKEN_OF_TORCH = {
    "torch: `no_grad`, `inference_mode`, `autocast`": Row(
        autocast, lambda: [torch().is_grad_enabled(), torch().is_autocast_enabled("cpu")]
    ),
    "torch: `TORCH_DISTRIBUTED_DEBUG`": Row(
        set_debug_level, lambda: str(torch().distributed.get_debug_level())
    ),
}
KEPT_OF_TORCH = {
    "torch: `set_default_dtype`": Row(
        lambda: torch().set_default_dtype(torch().float64),
        lambda: str(torch().get_default_dtype()),
    ),
    "torch: `set_num_threads`": Row(
        lambda: torch().set_num_threads(7), lambda: torch().get_num_threads()
    ),
    "torch: `use_deterministic_algorithms`": Row(
        lambda: torch().use_deterministic_algorithms(True),
        lambda: torch().are_deterministic_algorithms_enabled(),
    ),
}
ROWS = {
    "plain": {**TAKEN, **KEPT},
    "torch": {**TAKEN_OF_TORCH, **KEPT_OF_TORCH},
}


def stack_size() -> int:
    """Return the size of new threads' stacks: to ask for it is to set it."""
    size = threading.stack_size()
    threading.stack_size(size)
    return size


def look(kind: str) -> dict[str, object]:
    """Look at all rows in this process."""
    if kind == "torch":
        import torch  # noqa: F401  # a rank that nothing sent it to has not
    return {name: row.look() for name, row in ROWS[kind].items()}


def change(kind: str) -> list[str]:
    """Change all of it; return what the system did not let us."""
    refused = []
    for name, row in ROWS[kind].items():
        try:
            row.change()
        except (OSError, locale.Error):
            refused.append(name)
    return refused


def launcher_of(kind: str) -> LocalLauncher:
    """Return a launcher as `--launcher` names it."""
    if kind == "spawn":
        return LocalLauncher("spawn")
    return LocalLauncher("forkserver", standby=kind == "standby")


def main(launcher: str, kind: str) -> None:
    """Print what ranks had before, what this process has, what ranks have, what was refused."""
    if kind == "torch":
        import torch  # noqa: F401  # before the first gang
    executor = RankedExecutor(2, caller_rank=None, gather=True, launcher=launcher_of(launcher))
    with executor:
        before = executor.submit(look, kind).result()
        if launcher == "standby":  # those that are taken were forked before the change
            wait_for_parked()
        refused = change(kind)
        after = executor.submit(look, kind).result()
        print(json.dumps([before, look(kind), after, refused]))


def wait_for_parked() -> None:
    """Wait until two ranks are forked ahead."""
    from rankexec.launchers._guarded import GUARDIANS

    (guardian,) = GUARDIANS._by_key.values()
    limit = time.monotonic() + 30
    while len(psutil.Process(guardian._process.pid).children()) < 2 and time.monotonic() < limit:
        time.sleep(0.01)


if __name__ == "__main__":
    __import__("inherited_rows").main(*sys.argv[1:3])
