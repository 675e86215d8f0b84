"""Output of ranks: whole lines, whatever comes through the pipe, to where the user wants them."""

from __future__ import annotations

import io
import os
import sys
import warnings
from contextlib import ExitStack

import pytest

from rankexec._gang.output import TAIL_LINES, OutputReader, flush, sink_for


class Pipe:
    """A rank's stdout, and what came out of it."""

    def __init__(self):
        reader, self.writer = os.pipe()
        self.lines = []
        os.set_blocking(reader, False)
        source = open(reader, "rb", buffering=0)  # noqa: SIM115  # closed by the reader
        self.reader = OutputReader(source, "stdout", lambda *line: self.lines.append(line))

    def print(self, data):
        """Write as the rank would, and read."""
        os.write(self.writer, data)
        assert self.reader.drain()
        return self.take()

    def take(self):
        """Return the lines that have come since the last time."""
        taken, self.lines[:] = [line for _, line in self.lines], []
        return taken


@pytest.fixture
def pipe():
    """An open pipe; a test may close its reader itself."""
    pipe = Pipe()
    yield pipe
    os.close(pipe.writer)
    try:
        pipe.reader.fileno()
    except ValueError:
        return
    pipe.reader.close()


def test_lines(pipe):
    """Lines come without their ends, and with the name of their stream."""
    os.write(pipe.writer, b"one\ntwo\n\nfour\n")
    assert pipe.reader.drain()
    assert pipe.lines == [("stdout", line) for line in ("one", "two", "", "four")]


def test_nothing_there(pipe):
    """Reading never waits."""
    assert pipe.reader.drain()
    assert pipe.take() == []


def test_a_line_waits_for_its_end(pipe):
    """What has no end yet is kept, and passed on as a line in the end."""
    assert pipe.print(b"one") == []
    assert pipe.print(b" and two\nthr") == ["one and two"]
    assert pipe.reader.tail() == "one and two\nthr"
    pipe.reader.close()
    assert pipe.take() == ["thr"]


def test_the_end():
    """A closed pipe has nothing more to come."""
    pipe = Pipe()
    os.write(pipe.writer, b"last\nwords")
    os.close(pipe.writer)
    assert not pipe.reader.drain()
    pipe.reader.close()
    assert pipe.take() == ["last", "words"]


def test_carriage_returns(pipe):
    """A progress bar redraws its line: the last state is the line."""
    assert pipe.print(b"\r 10%\r 50%\r100%\n") == ["100%"]
    assert pipe.print(b"windows\r\n") == ["windows"]
    assert pipe.print(b" 10%\r") == []
    assert pipe.print(b" 20%\r\n") == [" 20%"]


def test_a_huge_line(pipe):
    """It is passed on in parts: nobody hoards what never ends. Nothing is lost."""
    parts = []
    for _ in range(10):
        parts += pipe.print(b"x" * 30_000)
    parts += pipe.print(b"\n")
    assert "".join(parts) == "x" * 300_000
    assert 1 < len(parts) < 10


def test_invalid_utf_8(pipe):
    """What is no text is shown as such; characters in two writes are one."""
    assert pipe.print(b"a\xffb\n") == ["a\N{REPLACEMENT CHARACTER}b"]
    euro = "\N{EURO SIGN}".encode()
    assert pipe.print(euro[:1]) == []
    assert pipe.print(euro[1:] + b"\n") == ["\N{EURO SIGN}"]


def test_tail(pipe):
    """The last lines are kept for an error message."""
    pipe.print(b"".join(b"%d\n" % number for number in range(100)) + b"rest")
    assert pipe.reader.tail().splitlines() == [
        *map(str, range(101 - TAIL_LINES, 100)),
        "rest",
    ]


# --- sinks ---


def test_all(capsys):
    """Lines go to the caller's stream of the same name, with their rank before them."""
    sink = sink_for(2, "all", ExitStack())
    sink("stdout", "line")
    sink("stderr", "error")
    assert capsys.readouterr() == ("[rank 2] line\n", "[rank 2] error\n")


@pytest.mark.parametrize("output", ["caller", frozenset({0, 1}), frozenset()])
def test_not_shown(capsys, output):
    """With "caller", or a list that has not this rank, nothing is."""
    sink_for(2, output, ExitStack())("stdout", "line")
    assert capsys.readouterr() == ("", "")


def test_chosen_ranks(capsys):
    """A rank of the list is shown as with "all"."""
    sink_for(2, frozenset({2}), ExitStack())("stdout", "line")
    assert capsys.readouterr().out == "[rank 2] line\n"


def test_directory(tmp_path, capsys):
    """Each rank has a file, both streams in it; a second gang appends, and all of it is there."""
    directory = tmp_path / "new" / "logs"
    for _ in range(2):
        with ExitStack() as stack:
            sink = sink_for(2, directory, stack)
            sink("stdout", "\N{EURO SIGN}")
            sink("stderr", "error")
            lines = (directory / "rank2.log").read_text(encoding="utf-8").splitlines()
            assert lines[-2:] == ["\N{EURO SIGN}", "error"]
    assert len(lines) == 4
    assert capsys.readouterr() == ("", "")


def test_the_stream_of_the_moment(monkeypatch):
    """A stream that the user puts in place later is used from then on."""
    sink = sink_for(0, "all", ExitStack())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sink("stdout", "line")
    assert sys.stdout.getvalue() == "[rank 0] line\n"


def test_a_broken_stream(monkeypatch):
    """It ends neither the gang nor the thread that reads: a warning, once."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    sink = sink_for(1, "all", ExitStack())
    with pytest.warns(RuntimeWarning, match=r"the output of rank 1 is lost: sys\.stdout raised"):
        sink("stdout", "one")
    sink("stdout", "two")


def test_a_broken_stream_where_warnings_are_errors(monkeypatch, capsys):
    """It is said nevertheless, and nothing is raised."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    sink = sink_for(1, "all", ExitStack())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink("stdout", "one")
    assert "rankexec: the output of rank 1 is lost" in capsys.readouterr().err


def test_no_stream(monkeypatch):
    """A program without a terminal has None there."""
    monkeypatch.setattr(sys, "stdout", None)
    sink_for(1, "all", ExitStack())("stdout", "line")
    flush()


def test_flush(capfd):
    """What was printed is out afterwards, whatever the stream keeps back."""
    stream = io.TextIOWrapper(open(1, "wb", closefd=False))  # noqa: SIM115  # closed below
    stream.write("kept back")
    assert capfd.readouterr().out == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        flush()
    assert capfd.readouterr().out == "kept back"
    stream.close()
