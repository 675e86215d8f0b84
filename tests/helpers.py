"""What several test files share: bounded polls, and scripts in a process of their own."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import multiprocess
import psutil
import pytest

from rankexec.launchers._guarded import GUARDIANS, Guardian

T = TypeVar("T")

with_the_caller = pytest.mark.parametrize("caller_rank", [0], ids=["caller_rank=0"])
"""For a test of the mode in which the caller is a rank."""
with_children_only = pytest.mark.parametrize("caller_rank", [None], ids=["caller_rank=None"])
"""For a test of the mode in which every rank is a child."""
WAIT_SECONDS = 30.0
"""How long a poll goes on; a bound for a loaded machine, not a wait."""
MARK = "RANKEXEC_TEST_MARK"
"""Environment variable that a script and all that it starts inherit."""


def wait_until(predicate: Callable[[], T], what: str = "", seconds: float = WAIT_SECONDS) -> T:
    """Poll until `predicate` returns something true, and return that."""
    limit = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds:g} s: {what or predicate!r}")
        time.sleep(0.01)
    return value


def whole_lines(text: str) -> list[str]:
    """Return the lines of all ranks, children's first.

    `print` writes its values in pieces to the caller's stream, so that a child's line, which comes
    in one piece, may be in the middle of one of the caller's.
    """
    of_children = r"(\[rank \d+\] .*)\n"
    return [*re.findall(of_children, text), *re.sub(of_children, "", text).splitlines()]


def last_guardian() -> Guardian:
    """Return the caller's handle on the guardian that was used last."""
    return list(GUARDIANS._by_key.values())[-1]


def keep_what_twins_keep() -> None:
    """Have multiprocessing and its twin make what they keep until this process ends.

    That is a helper process each, and memory for values.
    """
    for twin in (multiprocessing, multiprocess):
        importlib.import_module(f"{twin.__name__}.resource_tracker").ensure_running()
        twin.RawValue("i")


def is_running(pid: int) -> bool:
    """Return whether a process lives; one that is dead and not yet reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def guardian_pids() -> list[int]:
    """Return the pids of this process's guardians, and of their deputies."""
    pids = [guardian._process.pid for guardian in GUARDIANS._by_key.values()]
    for pid in list(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            pids += [child.pid for child in psutil.Process(pid).children() if is_deputy(child.pid)]
    return pids


def is_deputy(pid: int) -> bool:
    """Return whether a guardian's child is its deputy: a rank's stdout is a pipe."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1") == os.devnull
    except OSError:  # it has ended
        return False


def own_processes() -> list[int]:
    """Return the pids below this process, except guardians' and multiprocess's own helper's."""
    guardians = guardian_pids()
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one too
            helper = "resource_tracker" in " ".join(process.cmdline())
            if not helper and process.pid not in guardians:
                found.append(process.pid)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes whose environment carries `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def run_python(
    arguments: Sequence[str],
    cwd: Path,
    *,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments, as a user would in a terminal, until nothing of it is left.

    It finds what the tests find, and the modules beside them. Fails if a process that it started
    outlives it.
    """
    mark = uuid.uuid4().hex
    path = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            MARK: mark,
            **(env or {}),
        },
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(stdin, timeout)
        wait_until(lambda: not marked(mark), "no process of the script is left", 10)
    finally:
        for left in marked(mark):
            left.kill()
        process.wait()
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                stream.close()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_cells(folder: Path, cells: Sequence[Any]) -> list[Any]:
    """Run cells in an IPython shell; return what came of each, see `run_in_shell`."""
    program = os.path.join(os.path.dirname(__file__), "run_in_shell.py")
    done = run_python([program], folder, stdin=json.dumps(list(cells)))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


def result_of_program(folder: Path, *command: str) -> Any:
    """Return what a Python program's last line says in JSON; each rank has one thread."""
    env = {"OMP_NUM_THREADS": "1"}
    done = run_python(command, folder, env=env, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def result_by_torchrun(folder: Path, program: str) -> Any:
    """Return the same of a program that torchrun runs on two ranks."""
    command = ("-m", "torch.distributed.run", "--nproc-per-node", "2", program)
    return result_of_program(folder, *command)


def run_script(tmp_path: Path, source: str, **options: object) -> str:
    """Run a script to its end and return what it printed; its stderr has to be empty."""
    script = tmp_path / "script.py"
    script.write_text(source)
    done = run_python([str(script)], tmp_path, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def drive_kernel(folder: Path, steps: Sequence[Any], *, late: str = "") -> list[dict[str, Any]]:
    """Run steps in a fresh kernel, by the program `drive_kernel`; return what each cell came to.

    Fails if anything but `late` comes from a cell that has ended, or if a process is left.
    """
    program = os.path.join(os.path.dirname(__file__), "drive_kernel.py")
    done = run_python([program], folder, stdin=json.dumps(list(steps)), timeout=150)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "".join(found["late"]) == late
    return found["cells"]


class Marks:
    """A directory where processes write down their pids, with `faulty_ranks.mark`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory

    def __str__(self) -> str:
        return str(self.directory)

    def names(self) -> list[str]:
        """Return all marks, "rank-pid" each."""
        return sorted(n for n in os.listdir(self.directory) if n[0].isdigit() and n[-1].isdigit())

    def last(self) -> float:
        """Return when the last mark was left, in seconds of `time.time()`."""
        return max((self.directory / name).stat().st_mtime for name in self.names())

    def wait_for(self, count: int) -> None:
        """Wait until so many processes have left their mark."""
        wait_until(lambda: len(self.names()) >= count, f"{count} marks")

    def living(self) -> list[psutil.Process]:
        """Return the processes among them that live, other than this one."""
        found = []
        for name in self.names():
            pid, born = (self.directory / name).read_text(encoding="ascii").split()
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                # Not another one that got the same pid.
                same = abs(process.create_time() - float(born)) < 5
                if same and process.pid != os.getpid() and is_running(process.pid):
                    found.append(process)
        return found

    def held(self) -> bool:
        """Return whether a process holds the lock that `faulty_ranks.leave_runaway` took."""
        with open(self.directory / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def clear(self) -> None:
        """Forget all marks."""
        for name in self.names():
            (self.directory / name).unlink()


_FAULT_HEADER = """\
import asyncio, contextlib, os, signal, sys, threading, time
from concurrent.futures import CancelledError
from functools import partial
import faulty_ranks
from faulty_ranks import *
from rankexec import RankedExecutor, TorchDDPCtx

marks = sys.argv[1]

"""


@contextlib.contextmanager
def running_script(tmp_path: Path, marks: Marks, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process group of its own; it finds `faulty_ranks` and `marks`.

    Whatever it leaves is killed in the end, should the library have failed.
    """
    script = tmp_path / "script.py"
    script.write_text(_FAULT_HEADER + textwrap.dedent(body), encoding="utf-8")
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, str(script), str(marks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in marks.living():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.kill()
        process.communicate()
