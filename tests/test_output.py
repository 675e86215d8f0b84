"""Output of ranks: whole lines, whatever comes through the pipe, to where the user wants them."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import threading
import warnings
from contextlib import ExitStack

import pytest

from rankexec._gang.output import TAIL_LINES, OutputReader, flush
from rankexec._gang.sinks import sink_for


class Pipe:
    """A rank's stdout, and what came out of it."""

    def __init__(self):
        reader, self.writer = os.pipe()
        self.lines = []
        os.set_blocking(reader, False)
        source = open(reader, "rb", buffering=0)  # noqa: SIM115  # closed by the reader
        self.reader = OutputReader(source, "stdout", self.take_line)

    def take_line(self, stream, line, end="\n"):
        """Be the sink."""
        self.lines.append((stream, line))

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
    for _ in range(100):
        parts += pipe.print(b"x" * 30_000)
    parts += pipe.print(b"\n")
    assert "".join(parts) == "x" * 3_000_000
    assert 1 < len(parts) < 10


def test_a_bar_that_is_redrawn(pipe):
    """Its last state is shown from time to time."""
    parts = []
    for step in range(10_000):
        parts += pipe.print(b"\r%10d" % step)
    assert 0 < len(parts) < 5
    assert parts[0].strip().isdecimal()


def test_a_huge_line_in_a_log(pipe, tmp_path):
    """There its parts are one line again, whatever characters it is of."""
    text = "\N{EURO SIGN}\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 700_000
    with ExitStack() as stack:
        pipe.reader.sink = sink_for(2, tmp_path, stack)
        data = text.encode() + b"\n"
        for begin in range(0, len(data), 50_000):
            pipe.print(data[begin : begin + 50_000])
    assert (tmp_path / "rank2.log").read_text() == f"{text}\n"


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


def test_a_directory_that_is_removed(tmp_path):
    """It is made again: what comes later is in a new file of the same name."""
    with ExitStack() as stack:
        sink = sink_for(2, tmp_path / "logs", stack)
        sink("stdout", "lost with it")
        shutil.rmtree(tmp_path / "logs")
        sink("stdout", "later")
        sink("stdout", "and later")
        assert (tmp_path / "logs" / "rank2.log").read_text() == "later\nand later\n"
        shutil.rmtree(tmp_path / "logs")
        (tmp_path / "logs").touch()
        with pytest.warns(RuntimeWarning, match=r"rank2\.log raised FileExistsError"):
            sink("stdout", "no place")
        (tmp_path / "logs").unlink()
        sink("stdout", "there again")
        assert (tmp_path / "logs" / "rank2.log").read_text() == "there again\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk(tmp_path):
    """A warning, once; neither the next line nor the closing raises."""
    (tmp_path / "rank2.log").symlink_to("/dev/full")
    with ExitStack() as stack:
        sink = sink_for(2, tmp_path, stack)
        with pytest.warns(RuntimeWarning, match="of rank 2 is lost: .*No space left") as warned:
            list(map(sink, ("stdout", "stderr"), ("one", "two")))
    assert len(warned) == 1


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


def test_every_line_is_tried(monkeypatch):
    """A stream that raises for one line gets the next; each stream is warned of once."""
    shown = []

    class Moody:
        def write(self, text):
            if "bad" in text:
                raise RuntimeError("not this one")
            shown.append(text)

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Moody())
    sink = sink_for(1, "all", ExitStack())
    with pytest.warns(RuntimeWarning) as warned:
        list(map(sink, ["stdout", "stderr"] * 3, ["good 1", "bad", "bad", "bad", "bad", "good 2"]))
    assert shown == ["[rank 1] good 1\n", "[rank 1] good 2\n"]
    assert len(warned) == 2
    assert {str(one.message).split(" raised")[0].split()[-1] for one in warned} == {
        "sys.stdout",
        "sys.stderr",
    }


def test_nowhere_to_say_it(monkeypatch):
    """Where stderr is as broken as stdout, nothing is raised into the thread that reads."""
    closed = io.StringIO()
    closed.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, closed)
    monkeypatch.setattr(warnings, "showwarning", lambda *_: closed.write("x"))
    sink = sink_for(1, "all", ExitStack())
    sink("stdout", "one")
    monkeypatch.delattr(sys, "stderr")
    sink("stderr", "two")


class Bytes(io.BytesIO):
    """A binary file that is there to be read when the text stream above it is closed."""

    def close(self):
        """Stay open."""


def text_stream(encoding):
    """Return a strict stream of that encoding, and what is below it."""
    binary = Bytes()
    return io.TextIOWrapper(binary, encoding=encoding), binary


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"\\u20ac d\\xf6ne"),
        ("latin-1", b"\\u20ac d\xf6ne"),
        ("cp1252", b"\x80 d\xf6ne"),
        ("utf-8", "\u20ac d\xf6ne".encode()),
        ("utf-16-le", "\u20ac d\xf6ne".encode("utf-16-le")),
    ],
)
def test_what_a_stream_cannot_encode(monkeypatch, encoding, shown):
    """Such characters are shown as escapes; all others, and the lines after, as they are."""
    stream, binary = text_stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    sink = sink_for(1, "all", ExitStack())
    sink("stdout", "\u20ac d\xf6ne")
    sink("stdout", "plain")
    prefix, end = "[rank 1] ".encode(encoding), "\n".encode(encoding)
    assert binary.getvalue() == prefix + shown + end + prefix + "plain".encode(encoding) + end


def test_a_stream_that_knows_no_encoding(monkeypatch):
    """What says nothing, or the wrong thing, about its encoding gets ASCII."""
    inner, binary = text_stream("ascii")

    class Tee:
        encoding = "utf-8"

        def write(self, text):
            inner.write(text)
            inner.flush()

    class Odd(Tee):
        encoding = "no-such-codec"

    writer = codecs.getwriter("ascii")(binary)
    sink = sink_for(1, "all", ExitStack())
    for stream in (Tee(), Odd(), writer):
        monkeypatch.setattr(sys, "stdout", stream)
        sink("stdout", "d\xf6ne")
    assert binary.getvalue() == b"[rank 1] d\\xf6ne\n" * 3


def full_pipe(buffering):
    """Return the reading end of a full pipe, and a stream on the other that does not wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 512)
    except BlockingIOError:
        pass
    raw = open(writer, "wb", buffering=buffering)  # noqa: SIM115  # closed by the test
    return reader, io.TextIOWrapper(raw, write_through=buffering == 0, line_buffering=buffering > 0)


@pytest.mark.parametrize("buffering", [0, 8192])
def test_a_full_pipe_that_does_not_wait(monkeypatch, buffering):
    """Its reader is waited for; no line is lost, however long."""
    reader, stream = full_pipe(buffering)
    lines = [f"{number} " + "\N{EURO SIGN}" * 30_000 for number in range(5)]
    read = []

    def read_all():
        while data := os.read(reader, 65536):
            read.append(data)

    thread = threading.Thread(target=read_all)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(sys, "stdout", stream)
        sink = sink_for(1, "all", ExitStack())
        thread.start()
        for line in lines:
            sink("stdout", line)
    stream.close()
    thread.join()
    os.close(reader)
    assert b"".join(read).lstrip(b"x").decode() == "".join(f"[rank 1] {line}\n" for line in lines)


@pytest.mark.parametrize("buffering", [0, 8192])
def test_a_full_pipe_that_nobody_reads(monkeypatch, buffering):
    """Its lines are lost after a while, with a warning; it is waited for once, and tried again."""
    reader, stream = full_pipe(buffering)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        sink = sink_for(1, "all", ExitStack())
        with pytest.warns(RuntimeWarning, match="nobody reads it") as warned:
            list(map(sink, ["stdout"] * 200, map(str, range(200))))  # each would be waited for
        assert len(warned) == 1
        assert set(os.read(reader, 1 << 20)) == {ord("x")}
        sink("stdout", "seen")
    assert os.read(reader, 1 << 20).endswith(b"[rank 1] seen\n")
    stream.close()
    os.close(reader)


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
