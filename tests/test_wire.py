"""What travels: packed once, small or in a file, and unpacked anywhere, any number of times."""

from __future__ import annotations

import io
import os
import pickle
import random
import socket
import sys
import threading
import types

import cloudpickle
import pytest

from rankexec._gang import line
from rankexec._gang.channel import Channel
from rankexec._gang.line import Line
from rankexec._gang.picklers import caller_classes, is_known_to_caller
from rankexec._gang.sockets import PASSES_FILES
from rankexec._gang.wire import BUFFER_LIMIT, INLINE_LIMIT, pack, pack_result, unpack

has_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")
passes_files = pytest.mark.skipif(not PASSES_FILES, reason="files cannot be passed")


def round_trip(value):
    """Pack for the ranks, unpack, and give the file back."""
    packed = pack(value)
    try:
        return unpack(packed)
    finally:
        packed.close()


class Buffer:
    """Bytes that offer themselves out of band, as a numpy array does."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Buffer, (pickle.PickleBuffer(self.data),)


# --- packing ---


def test_small_values_travel_inline():
    """Up to INLINE_LIMIT there is no file."""
    packed = pack({"a": [1, 2.5, None]})
    assert (packed.fd, packed.sections) == (None, ())
    assert len(packed.stream) <= INLINE_LIMIT
    assert unpack(packed) == {"a": [1, 2.5, None]}
    packed.close()  # nothing to give back


@passes_files
def test_big_values_travel_in_a_file():
    """What is larger is in the file alone."""
    value = list(range(INLINE_LIMIT))
    packed = pack(value)
    assert packed.stream == b""
    assert packed.sections[0][0] == 0
    assert packed.sections[0][1] == os.fstat(packed.fd).st_size > INLINE_LIMIT
    assert unpack(packed) == value
    packed.close()
    assert packed.fd is None
    packed.close()  # twice does no harm


@passes_files
def test_a_large_buffer_is_kept_out_of_the_stream():
    """From BUFFER_LIMIT on it is a section of the file, aligned; below, part of the stream."""
    packed = pack([Buffer(bytearray(b"x" * BUFFER_LIMIT)), Buffer(bytearray(BUFFER_LIMIT - 1))])
    (start, stream_size), (offset, size) = packed.sections
    assert (start, size) == (0, BUFFER_LIMIT)
    assert BUFFER_LIMIT <= stream_size < BUFFER_LIMIT + 1000
    assert offset % 64 == 0
    large, small = unpack(packed)
    packed.close()
    assert bytes(large.data) == b"x" * BUFFER_LIMIT
    assert bytes(small.data) == bytes(BUFFER_LIMIT - 1)


@passes_files
def test_unpacked_twice_gives_independent_copies():
    """Ranks map one file, each for itself: what one writes, the others do not see."""
    packed = pack(Buffer(bytearray(BUFFER_LIMIT)))
    first, second = unpack(packed), unpack(packed)
    first.data[:3] = b"one"
    second.data[:3] = b"two"
    third = unpack(packed)
    packed.close()
    assert bytes(first.data[:3]) == b"one"
    assert bytes(second.data[:3]) == b"two"
    assert bytes(third.data[:3]) == bytes(3)


def test_numpy_arrays():
    """They arrive writable, contiguous or not, small or large."""
    numpy = pytest.importorskip("numpy")
    large = numpy.arange(BUFFER_LIMIT, dtype="float64")
    for array in (large, large[:10], large.reshape(2, -1).T, large[::2]):
        arrived = round_trip(array)
        assert numpy.array_equal(arrived, array)
        arrived[...] = 0
        assert large[1] == 1


def test_one_object_stays_one_object():
    """What is reached twice is one object afterwards, too."""
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(BUFFER_LIMIT)
    first, second = round_trip([array, array])
    assert first is second


@has_memfd
def test_the_file_is_sealed():
    """Nobody can change or resize what others have mapped."""
    packed = pack(b"x" * BUFFER_LIMIT)
    for change in (
        lambda: os.pwrite(packed.fd, b"y", 0),
        lambda: os.ftruncate(packed.fd, 10),
        lambda: os.ftruncate(packed.fd, 10 * BUFFER_LIMIT),
    ):
        with pytest.raises(PermissionError):
            change()
    packed.close()


@passes_files
def test_without_memfd_a_file_without_a_name(monkeypatch):
    """On other platforms a temporary file, deleted at once, serves."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    packed = pack(Buffer(bytearray(BUFFER_LIMIT)))
    assert os.fstat(packed.fd).st_nlink == 0
    first, second = unpack(packed), unpack(packed)
    packed.close()
    first.data[:1] = b"x"
    assert bytes(second.data[:1]) == b"\0"


def test_inline_results_hold_no_file():
    """An exception that is packed into another message holds none, however large it is."""
    packed = pack_result(Buffer(bytearray(BUFFER_LIMIT)), frozenset(), inline=True)
    assert packed.fd is None
    assert bytes(unpack(packed).data) == bytes(BUFFER_LIMIT)


def test_a_failure_leaves_nothing_open():
    """A value that cannot be packed, after a large buffer that can."""
    with pytest.raises(TypeError):
        pack([Buffer(bytearray(BUFFER_LIMIT)), (_ for _ in ())])


# --- the channel ---


@pytest.fixture
def channels():
    """Both ends of a channel."""
    ends = [Channel(Line(end.detach())) for end in socket.socketpair()]
    yield ends
    for end in ends:
        end.close()


def test_channel_carries_messages(channels):
    """Kind and details arrive in order; `poll` says whether one is there."""
    here, there = channels
    assert not there.poll()
    here.send("go")
    here.send("call", ("details", 1))
    assert there.poll()
    assert there.receive() == ("go", None, None)
    assert there.receive() == ("call", ("details", 1), None)
    assert not there.poll()


@pytest.mark.parametrize("size", [10, 2 * BUFFER_LIMIT])
@passes_files
def test_channel_carries_packed_values(channels, size):
    """A small one in the message, a large one as a file beside it, which stays the sender's."""
    here, there = channels
    packed = pack(b"x" * size)
    for _ in range(2):
        here.send("call", None, packed)
        _, _, received = there.receive()
        assert (received.fd is None) == (packed.fd is None)
        assert received.fd != packed.fd or packed.fd is None
        assert unpack(received) == b"x" * size
        received.close()
    packed.close()


@passes_files
def test_a_message_without_its_file(channels, monkeypatch):
    """A system that has no descriptor left for it drops it: that is the end."""
    here, there = channels
    packed = pack(b"x" * 2 * BUFFER_LIMIT)
    here.send("call", None, packed)
    packed.close()
    monkeypatch.setattr(line, "receive_files", lambda own, size, _: (own.recv(size), []))
    with pytest.raises(EOFError):
        there.receive()


def test_the_end_of_a_channel(channels):
    """When the other side has closed, `receive` says so, after its last message."""
    here, there = channels
    here.send("left")
    here.close()
    assert there.poll()
    assert there.receive()[0] == "left"
    assert there.poll()
    with pytest.raises(EOFError):
        there.receive()


# --- what the picklers do beyond pickle ---


def test_functions_travel_with_what_they_use():
    """Lambdas, closures, and functions of a function."""
    factor = 3
    assert round_trip(lambda x: x * factor)(2) == 6


def test_functions_of_main_find_the_receivers_main(monkeypatch):
    """So names set there by `need=` and `imports=` are found, and functions see one another."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "number", 1, raising=False)
    code = compile("number + 1", "cell", "eval")
    fn = types.FunctionType(code, main.__dict__, "fn")
    fn.__module__ = "__main__"
    arrived = round_trip(fn)
    assert arrived.__globals__ is main.__dict__
    monkeypatch.setattr(main, "number", 41)
    assert arrived() == 42


def test_what_cloudpickle_refuses_is_given_to_dill():
    """A class method as a builtin class has it, for instance."""
    method = dict.__dict__["fromkeys"]
    with pytest.raises(TypeError):
        cloudpickle.dumps(method)
    assert round_trip({"method": method})["method"].__get__(None, dict)("ab") == {
        "a": None,
        "b": None,
    }


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock, threading.Condition])
def test_locks_arrive_new(make):
    """Whether somebody holds them here or not: nobody does there."""
    lock = make()
    with lock:
        arrived = round_trip({"lock": lock, "again": lock})
    assert type(arrived["lock"]) is type(lock)
    assert arrived["again"] is arrived["lock"]
    assert arrived["lock"].acquire(blocking=False)
    arrived["lock"].release()


def test_generators_are_refused():
    """Nothing can ship them."""
    with pytest.raises(TypeError, match="generator"):
        pack(_ for _ in ())


def test_sockets_are_refused():
    """They belong to their process."""
    with socket.socket() as sock, pytest.raises(TypeError, match="socket"):
        pack([sock])


@pytest.mark.parametrize("mode", ["r", "rb", "w"])
def test_open_files_are_refused(tmp_path, mode):
    """Otherwise cloudpickle would ship a copy of their content and say nothing."""
    path = tmp_path / "file"
    path.touch()
    with path.open(mode) as file, pytest.raises(TypeError, match="open file"):
        pack(file)


def test_files_in_memory_travel():
    """They are values."""
    assert round_trip(io.BytesIO(b"content")).read() == b"content"
    assert round_trip(io.StringIO("content")).read() == "content"


def test_the_standard_streams_are_the_receivers():
    """They go by name: each rank has its own."""
    for name in ("stdout", "stderr"):
        assert round_trip(getattr(sys, name)) is getattr(sys, name)


def test_a_class_of_the_caller_comes_back_as_that_class():
    """A result's class goes by its id, so methods that changed meanwhile are not overwritten."""

    class Local:
        def method(self):
            return "as shipped"

    arrived = round_trip(Local)
    assert arrived is Local
    Local.method = lambda _self: "changed since"
    result = unpack(pack_result([Local()], caller_classes()))
    assert type(result[0]) is Local
    assert result[0].method() == "changed since"


def test_which_classes_the_caller_can_have():
    """Those of modules, and those that it has sent; no others."""

    class Sent:
        pass

    class Own:
        pass

    round_trip(Sent)
    assert is_known_to_caller(ValueError)
    assert is_known_to_caller(Sent)
    assert not is_known_to_caller(Own)


def test_a_process_s_own_objects_in_a_result():
    """A call names them, so that each rank uses its own; a result is a copy of the rank's."""
    assert round_trip(os.environ) is os.environ
    arrived = unpack(pack_result({"environ": os.environ}, caller_classes()))["environ"]
    assert arrived is not os.environ
    assert arrived["PATH"] == os.environ["PATH"]
    assert round_trip(random.random).__self__ is random._inst
