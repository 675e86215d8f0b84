"""What ranks write: whose is shown, where, how; and that it is there when the call is over."""

from __future__ import annotations

import array
import contextlib
import contextvars
import fcntl
import io
import os
import pathlib
import signal
import subprocess
import sys
import termios
import time

import pytest
import ranked_functions
from helpers import run_script, wait_until, whole_lines, with_children_only, with_the_caller


def lines(text: str) -> list[str]:
    """Return the lines of all ranks in one order."""
    return sorted(whole_lines(text))


def speak() -> None:
    """Write to both streams."""
    print("out", os.environ["RANK"])
    print("err", os.environ["RANK"], file=sys.stderr)


# Ranks get the code of this file's functions, instead of importing the file and pytest with it.
speak.__module__ = None


@with_the_caller
def test_prefix(make_executor, capsys) -> None:
    """Children's lines have their rank before them; the caller's own are as they are."""
    make_executor(3).submit(speak)
    seen = capsys.readouterr()
    assert lines(seen.out) == ["[rank 1] out 1", "[rank 2] out 2", "out 0"]
    assert lines(seen.err) == ["[rank 1] err 1", "[rank 2] err 2", "err 0"]


@with_children_only
def test_prefix_without_a_callers_rank(make_executor, capsys) -> None:
    """Rank 0's lines are as they are, here too."""
    make_executor(3).submit(speak).result()
    seen = capsys.readouterr()
    assert lines(seen.out) == ["[rank 1] out 1", "[rank 2] out 2", "out 0"]
    assert lines(seen.err) == ["[rank 1] err 1", "[rank 2] err 2", "err 0"]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("all", ["[rank 1] out 1", "[rank 2] out 2"]),
        ("caller", []),
        ([2], ["[rank 2] out 2"]),
        ((1, 2), ["[rank 1] out 1", "[rank 2] out 2"]),
        ([], []),
        ([0], []),
    ],
)
def test_whose_output(make_executor, capsys, output, shown) -> None:
    """`output` chooses among the children; the caller's rank writes where it likes."""
    make_executor(3, output=output).submit(speak).result()
    seen = [line for line in lines(capsys.readouterr().out) if line[-1] != "0"]
    assert seen == shown


@pytest.mark.parametrize("kind", [pathlib.Path, str])
def test_files(make_executor, capsys, tmp_path, caller_rank, kind) -> None:
    """A directory gets one file for each child, and more of the next gang's."""
    executor = make_executor(2, output=kind(tmp_path))
    for _ in range(2):
        executor.submit(speak).result()
    executor.shutdown()
    ranks = [1] if caller_rank == 0 else [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"rank{r}.log" for r in ranks]
    for rank in ranks:
        written = (tmp_path / f"rank{rank}.log").read_text()
        assert lines(written) == [f"err {rank}"] * 2 + [f"out {rank}"] * 2
    assert "1" not in capsys.readouterr().out


def test_a_directory_to_be_made(make_executor, tmp_path) -> None:
    """A Path that does not exist is made."""
    executor = make_executor(2, output=tmp_path / "some" / "where")
    executor.submit(speak).result()
    executor.shutdown()
    assert "out 1\n" in (tmp_path / "some" / "where" / "rank1.log").read_text()


def test_a_directory_that_cannot_be_made(make_executor, tmp_path) -> None:
    """The gang fails with the system's error, and no rank is left; the next one runs."""
    (tmp_path / "file").touch()
    executor = make_executor(2, output=tmp_path / "file" / "logs")
    with pytest.raises(NotADirectoryError):
        executor.submit(speak).result()
    assert executor.options(output="caller").submit(speak).exception() is None


@pytest.mark.filterwarnings("ignore:the output of rank:RuntimeWarning")
def test_a_full_disk(make_executor, tmp_path) -> None:
    """It costs the lines, and no gang its result."""
    for rank in range(2):
        (tmp_path / f"rank{rank}.log").symlink_to("/dev/full")
    executor = make_executor(2, output=tmp_path)
    assert executor.submit(speak).exception() is None
    with executor.session() as session:
        assert session.submit(speak).exception() is None


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=",".join,
)
def test_a_container_without_utf_8(tmp_path, env) -> None:
    """What the caller's stdout cannot encode is escaped; the lines after it are there, too."""
    source = """
from rankexec import RankedExecutor

def work():
    print("before \\u2713")
    print("after")

with RankedExecutor(2, caller_rank=None, output=[1]) as executor:
    executor.submit(work).result()
"""
    out = run_script(tmp_path, source, env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "", **env})
    assert out == "[rank 1] before \\u2713\n[rank 1] after\n"


def test_a_ranks_own_stream(make_executor) -> None:
    """A rank may put anything in place of its sys.stdout, and still report its result."""

    def replace() -> str:
        class Strange:
            def write(self, text: str) -> None:
                raise RuntimeError(text)

            def flush(self) -> None:
                raise RuntimeError("no")

        before = sys.stdout, sys.stderr
        sys.stdout = Strange()
        del sys.stderr
        if os.environ["RANK"] == "0":
            sys.stdout, sys.stderr = before
        return os.environ["RANK"]

    assert make_executor(2, gather=True).submit(replace).result() == ["0", "1"]


def test_the_stream_of_the_moment(make_executor, capsys) -> None:
    """Lines go to whatever sys.stdout is while the gang runs."""
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        make_executor(2).submit(speak).result()
    assert "[rank 1] out 1\n" in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_the_context_of_who_submits(make_executor, monkeypatch) -> None:
    """A stream that looks into the context, as a notebook's does, finds the submitting one."""
    cell = contextvars.ContextVar("cell", default="none")
    seen = []

    class Notebook(io.StringIO):
        def write(self, text: str) -> int:
            seen.append((cell.get(), text))
            return len(text)

    monkeypatch.setattr(sys, "stdout", Notebook())
    executor = make_executor(2, max_gangs=1)
    for name in ("first", "second"):
        contextvars.copy_context().run(
            lambda name=name: (cell.set(name), executor.submit(write_raw, b"line\n").result())
        )
    assert seen == [("first", "[rank 1] line\n"), ("second", "[rank 1] line\n")]


# --- by any means ---


def write_raw(stdout: bytes, stderr: bytes = b"") -> None:
    """Write to the descriptors, as C code does; on rank 1 only."""
    if os.environ["RANK"] == "1":
        os.write(1, stdout)
        os.write(2, stderr)


write_raw.__module__ = None


def test_from_c(make_executor, capsys) -> None:
    """What is written to the descriptors is shown as well."""
    make_executor(2).submit(write_raw, b"from C\n", b"error from C\n").result()
    assert capsys.readouterr() == ("[rank 1] from C\n", "[rank 1] error from C\n")


def test_from_cs_own_buffers(make_executor, capsys) -> None:
    """C's stdio buffers are flushed before the call is over."""

    def put() -> None:
        import ctypes

        if os.environ["RANK"] == "1":
            ctypes.CDLL(None).puts(b"from stdio")

    make_executor(2).submit(put).result()
    assert capsys.readouterr().out == "[rank 1] from stdio\n"


def test_from_a_process_of_a_rank(make_executor, capsys) -> None:
    """It shares the rank's streams."""

    def run() -> None:
        if os.environ["RANK"] == "1":
            subprocess.run([sys.executable, "-c", "print('from a program')"], check=True)

    make_executor(2).submit(run).result()
    assert capsys.readouterr().out == "[rank 1] from a program\n"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"no end of line", ["no end of line"]),
        (b"one\nno end of line", ["one", "no end of line"]),
        (b"10%\r50%\r100%\n", ["100%"]),
        (b"windows\r\n", ["windows"]),
        (b"\n", [""]),
        (b"caf\xc3\xa9 \xff\n", ["caf\u00e9 \ufffd"]),
        (b"x" * 200_000 + b"\n", None),
    ],
)
def test_lines(make_executor, capsys, raw, shown) -> None:
    """Whole lines are shown; of a progress bar its last state; and nothing is lost."""
    make_executor(2).submit(write_raw, raw).result()
    seen = capsys.readouterr().out
    if shown is None:
        assert seen.replace("[rank 1] ", "").replace("\n", "") == raw.decode().strip()
    else:
        assert seen == "".join(f"[rank 1] {line}\n" for line in shown)


def test_much_output(make_executor, capsys) -> None:
    """Lines of different children are not mixed, and each child's stay in order."""

    def count() -> None:
        for number in range(20_000 if os.environ["RANK"] != "0" else 0):
            print(os.environ["RANK"], number)

    make_executor(3).submit(count).result()
    seen = capsys.readouterr().out.splitlines()
    for rank in (1, 2):
        mine = [line for line in seen if line.startswith(f"[rank {rank}] ")]
        assert mine == [f"[rank {rank}] {rank} {number}" for number in range(20_000)]


# --- when ---


@with_children_only
def test_live(make_executor, capsys, tmp_path) -> None:
    """Output is shown while the gang runs, not at its end."""

    def report_and_wait(path: str) -> None:
        write_raw(b"at work\n")
        ranked_functions.wait_for(path)

    future = make_executor(2).submit(report_and_wait, str(tmp_path / "seen"))
    wait_until(lambda: "[rank 1] at work\n" in capsys.readouterr().out)
    assert future.running()
    (tmp_path / "seen").touch()
    assert future.result() is None


def test_nothing_comes_later(make_executor, capsys) -> None:
    """When the call is over all of its output is there."""
    executor = make_executor(2)
    for number in range(10):
        executor.submit(write_raw, b"line %d\nrest" % number).result()
        assert capsys.readouterr().out == f"[rank 1] line {number}\n[rank 1] rest\n"
    executor.shutdown()
    assert capsys.readouterr().out == ""


def test_output_of_a_failure(make_executor, capsys) -> None:
    """What a rank has said before it failed is shown before its exception comes out."""

    def fail() -> None:
        if os.environ["RANK"] == "1":
            os.write(1, b"last words")
            raise ValueError("gave up")
        time.sleep(600)

    with pytest.raises(ValueError, match="gave up"):
        make_executor(2).submit(fail).result()
    assert capsys.readouterr().out == "[rank 1] last words\n"


UNREAD = """\
import os, sys, time
from rankexec import GangTimeout, RankedExecutor

def work():
    if os.environ["RANK"] == "1":
        for i in range(100_000):
            print("x" * 200, i)
    time.sleep(600)

options = eval(sys.argv[1])
runs = RankedExecutor(2, **options)
if sys.argv[2] == "session":
    runs = runs.session()
try:
    runs.submit(work).result()
except (KeyboardInterrupt, GangTimeout) as error:
    print(type(error).__name__, file=sys.stderr)
    os._exit(0)  # what Python's own stdout holds will never be written
"""


@pytest.mark.parametrize("runs", ["executor", "session"])
@pytest.mark.parametrize("mode", [{"caller_rank": 0}, {"caller_rank": None}], ids=str)
@pytest.mark.parametrize("end", ["Ctrl-C", "timeout"])
def test_a_stdout_that_nobody_reads(tmp_path, runs, mode, end) -> None:
    """`| less`, a terminal that stands still: lines wait; Ctrl-C and the time limit do not."""
    (tmp_path / "script.py").write_text(UNREAD)
    options = {**mode, "timeout": 3.0 if end == "timeout" else None}
    reader, writer = os.pipe()
    command = [sys.executable, "script.py", repr(options), runs]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as script:
        os.close(writer)
        wait_until(lambda: is_full(reader), "the pipe is full")
        if end == "Ctrl-C":
            script.send_signal(signal.SIGINT)
        said = script.communicate(timeout=60)[1]
    os.close(reader)
    assert said.splitlines()[-1] == ("KeyboardInterrupt" if end == "Ctrl-C" else "GangTimeout")


def is_full(reader: int) -> bool:
    """Return whether a pipe holds as much as it can, but for a line."""
    size = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, size)
    return size[0] > fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) - 8192
