"""Where Linux is missing, or parts of it: other platforms, acted out on this one."""

from __future__ import annotations

import errno
import os  # noqa: F401  # conditions of marks use it
import subprocess
import sys

import pytest
from helpers import is_running, run_script, wait_until, whole_lines

# What other platforms lack of the modules that rankexec uses itself. The standard library looks at
# some of it when it is imported, so that comes first.
WITHOUT = """
import concurrent.futures.thread, os, signal, socket, subprocess, tempfile
import cloudpickle, multiprocess.connection, multiprocess.reduction, multiprocess.spawn, psutil

def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""

# What is left of Windows: no handing down of descriptors, other signals, pairs of sockets by TCP.
WINDOWS = """
without(os, "fork", "memfd_create", "pidfd_open", "register_at_fork", "uname", "wait4", "WNOHANG")
without(os, "pwrite")
without(signal, "pthread_kill", "SIGCHLD", "SIGURG", "SIGUSR1", "SIGUSR2")
without(signal, "SIGRTMIN", "SIGRTMAX")
without(socket, "AF_UNIX")

def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]

socket.socketpair = pair
import psutil, sys, threading, time
import rankexec
from rankexec import LocalLauncher, RankedExecutor
from rankexec.launchers import _guarded

def seat(data=b""):
    sys.stdout.write("hello\\n")  # a whole line: the caller's rank shares its stream
    return os.environ["RANK"], len(data), os.getppid() == CALLER

def wait():
    while True:  # there, nothing breaks off a call that blocks for good in the caller
        time.sleep(0.05)

def die():
    if os.environ["RANK"] == "1":
        os._exit(7)
    wait()

def spin():
    if os.environ["RANK"] == "0":
        while True:
            pass
    raise ValueError("rank 1 has the cause")

CALLER = os.getpid()
"""

WINDOWS_GANGS = """
for caller_rank in (0, None):
    executor = RankedExecutor(3, caller_rank=caller_rank, gather=True, output="caller")
    print(executor.submit(seat, bytearray(3_000_000)).result())
    for fn in (spin, die):
        error = executor.submit(fn).exception()
        print(type(error).__name__, str(error).partition("\\n")[0].partition(" (pid")[0])
    error = executor.options(timeout=3).submit(wait).exception()
    stacks = error.stacks
    print(type(error).__name__, sorted(stacks), all("in wait" in s for s in stacks.values()))
    print(executor.submit(len, "ab").result())
    executor.shutdown()

try:
    LocalLauncher("forkserver")
except ValueError as error:
    print(error)
print(len(_guarded.GUARDIANS._by_key), psutil.Process().children())
"""

WINDOWS_OUTPUT = """
with RankedExecutor(2) as executor:
    executor.submit(seat)
for _ in range(1000):  # there, what a rank prints last may come after the result
    if threading.active_count() == 1:
        break
    time.sleep(0.01)
"""

WINDOWS_CTRL_C = """
def interrupt():
    os.kill(CALLER, signal.SIGINT)
    wait()

executor = RankedExecutor(2)
try:
    executor.submit(interrupt)
except KeyboardInterrupt:
    print("interrupted")
print(executor.submit(len, "ab").result())
"""

WINDOWS_DDP = """
import torch.distributed as dist

def total():
    numbers = torch.ones(400_000)  # 1.6 MB
    dist.all_reduce(numbers)
    return numbers

executor = RankedExecutor(2, ctx=rankexec.TorchDDPCtx(), gather=True)
print([float(part.sum()) for part in executor.submit(total).result()])
"""

WINDOWS_KILLED = """
def report():
    print(os.getpid(), flush=True)
    wait()

executor = RankedExecutor(2, caller_rank=None)
executor.submit(report).result()
"""

NO_LINUX = """
without(os, "memfd_create", "pidfd_open")

from rankexec import RankedExecutor
with RankedExecutor(2, gather=True, output="caller") as executor:
    print(executor.submit(lambda data: sum(data), bytearray(b"x" * 3_000_000)).result())
    print(repr(executor.submit(lambda: 1 / int(os.environ["RANK"])).exception()))
"""


WINDOWS_PRINTED = """\
{}[('0', 3000000, {}), ('1', 3000000, True), ('2', 3000000, True)]
ValueError rank 1 has the cause
RankDied rank 1 of 3
GangTimeout [0, 1, 2] True
[2, 2, 2]
"""


def test_windows(tmp_path):
    """Where no descriptors can be handed down, ranks are the caller's own, and gangs work."""
    printed = run_script(tmp_path, WITHOUT + WINDOWS + WINDOWS_GANGS)
    modes = "".join(WINDOWS_PRINTED.format(*mode) for mode in (("hello\n", False), ("", True)))
    assert printed == modes + "start_method takes one of ('spawn',), got 'forkserver'\n0 []\n"


def test_windows_output(tmp_path):
    """What ranks print comes, prefixed."""
    printed = run_script(tmp_path, WITHOUT + WINDOWS + WINDOWS_OUTPUT)
    assert sorted(whole_lines(printed)) == ["[rank 1] hello", "hello"]


def test_windows_ctrl_c(tmp_path):
    """It comes out of submit, and the executor goes on."""
    printed = run_script(tmp_path, WITHOUT + WINDOWS + WINDOWS_CTRL_C)
    assert printed == "interrupted\n2\n"


def test_windows_ddp(tmp_path):
    """Ranks meet in a group, and tensors come back."""
    pytest.importorskip("torch")
    printed = run_script(tmp_path, "import torch" + WITHOUT + WINDOWS + WINDOWS_DDP)
    assert printed == "[800000.0, 800000.0]\n"


def test_windows_caller_killed(tmp_path):
    """Ranks end with it."""
    (tmp_path / "script.py").write_text(WITHOUT + WINDOWS + WINDOWS_KILLED)
    command = [sys.executable, "script.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as script:
        ranks = [int(script.stdout.readline().removeprefix("[rank 1] ")) for _ in range(2)]
        script.kill()
    wait_until(lambda: not any(is_running(pid) for pid in ranks), "the ranks' end")


FROZEN = """
import multiprocess, sys
from rankexec import RankedExecutor

print("started")
sys.frozen = True
for _ in range(2):
    for start_method in ("forkserver", "spawn"):
        try:
            executor = RankedExecutor(2, launcher=rankexec.LocalLauncher(start_method))
            print(executor.submit(len, "ab").result())
        except RuntimeError as error:
            print(error)
    multiprocess.set_executable(sys.argv[0] + ".python")
"""


def test_a_frozen_application(tmp_path):
    """It is told so, and never started by itself; with a Python that it names ranks start."""
    (tmp_path / "script.py.python").symlink_to(sys.executable)
    printed = run_script(tmp_path, "import rankexec" + FROZEN).splitlines()
    assert printed[0] == "started"
    for said in printed[1:3]:
        assert "this application is frozen" in said
        assert "multiprocess.set_executable(" in said
    assert printed[3:] == ["2", "2"]


REFUSED = {
    "pidfd_open": (434, None),
    "memfd_create": (319, None),
    "the death of a parent": (157, 1),  # prctl, by its first argument
    "subreapers": (157, 36),
    "huge pages": (28, None),  # madvise
}
"""System calls of x86-64; of none other, as its numbers are other ones."""

AS_EVER = """
import os
from rankexec import RankedExecutor

def seat(data):
    return os.environ["RANK"], len(data)

for caller_rank in (0, None):
    with RankedExecutor(2, gather=True, caller_rank=caller_rank) as executor:
        print(executor.submit(seat, b"x" * 2**21).result())
        print(repr(executor.submit(divmod, 1, 0).exception()))
"""


@pytest.mark.skipif("os.uname().machine != 'x86_64'", reason="system calls have other numbers")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", REFUSED)
def test_a_call_that_the_kernel_refuses(tmp_path, call, number):
    """Python has the function, and it fails: gangs do without."""
    refuse = f"import refused_calls\nrefused_calls.refuse({REFUSED[call]}, {number})\n"
    seats = [("0", 2**21), ("1", 2**21)]
    error = ZeroDivisionError("integer division or modulo by zero")
    assert run_script(tmp_path, refuse + AS_EVER) == f"{seats}\n{error!r}\n" * 2


@pytest.mark.skipif("sys.platform != 'linux'", reason="acts it out by taking Linux's calls away")
def test_without_linux_calls(tmp_path):
    """Without memfd and pidfd gangs work, large arguments travel, and failures end them."""
    printed = run_script(tmp_path, WITHOUT + NO_LINUX)
    assert printed == "[360000000, 360000000]\nZeroDivisionError('division by zero')\n"


WRITES_IN_C = """
import ctypes, os, sys
from rankexec import RankedExecutor

def write():
    if os.environ["RANK"] == "0":
        for descriptor in (1, 2):
            ctypes.CDLL(None).dprintf(descriptor, b"from C")
    return int(os.environ["RANK"])

found = []
for caller_rank in (0, None):
    with RankedExecutor(2, gather=True, caller_rank=caller_rank, output="caller") as executor:
        found.append(executor.submit(write).result())
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        ctypes.CDLL(None).dprintf(2, b"from C")
        found.append(executor.submit(write).result())
open(sys.argv[1], "w").write(repr(found))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ""])
def test_closed_standard_streams(tmp_path, closed):
    """What C code writes there, in a daemon for instance, goes into no socket of ours."""
    (tmp_path / "script.py").write_text(WRITES_IN_C)
    shell = ["bash", "-c", f'exec "$0" script.py found {closed}', sys.executable]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert (tmp_path / "found").read_text() == repr([[0, 1]] * 4), done.stderr
