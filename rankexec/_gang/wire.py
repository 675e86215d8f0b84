"""Packing: one pickled stream for all ranks, beside it large buffers, both in one memfd."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import cloudpickle

from rankexec._gang import sockets
from rankexec._gang.deferred import Interruptible
from rankexec._gang.picklers import CallPickler, Keep, ResultPickler
from rankexec._gang.replay import Dumper, second_attempt, second_attempt_of_result

__all__ = ("Dumped", "Packed", "dump", "pack", "pack_result", "unpack")

INLINE_LIMIT = 8 * 1024
"""Bytes up to which a payload travels inside its message: far below a socket's buffer."""
BUFFER_LIMIT = 1024 * 1024
"""Bytes from which a buffer (of a numpy array, say) is kept out of the stream and mapped."""
_ALIGN = 64
_NONE = pickle.dumps(None)


@dataclass
class Packed:
    """A pickled value: in `stream` if it is small, else in the file `fd`.

    `sections` are (offset, size) in that file: the stream first, then its buffers. In `boxes` are
    the descriptors that belong to the value.
    """

    stream: bytes
    sections: tuple[tuple[int, int], ...] = ()
    fd: int | None = None
    first: int | None = None
    """Of a session's call, the number of the first object that it brings."""
    boxes: tuple[int, ...] = ()

    def files(self) -> list[int]:
        """Return all that is to be sent beside it."""
        return [*([] if self.fd is None else [self.fd]), *self.boxes]

    def with_files(self, files: list[int]) -> Packed:
        """Return the same with what was received beside it."""
        fd, boxes = (files[0], files[1:]) if files and self.sections else (None, files)
        return replace(self, fd=fd, boxes=tuple(boxes))

    def close(self) -> None:
        """Give the files back. Nothing else needs to be done: they have no names."""
        files = self.files()
        self.fd, self.boxes = None, ()
        sockets.close_all(files)


Make = Callable[[io.BytesIO, Keep], cloudpickle.Pickler]


@dataclass
class Dumped:
    """A pickled value that is in no file yet, and the pickler that has made it."""

    stream: io.BytesIO
    kept: list[memoryview]
    pickler: Any
    inline: bool
    """Whether it goes into no file."""

    @cached_property
    def memo(self) -> dict[int, tuple[int, Any]]:
        """What the pickler has met: by id, an object's number and the object, which this holds."""
        memo: dict[int, tuple[int, Any]] = self.pickler.memo.copy()
        return memo

    def packed(self, *, first: int | None = None) -> Packed:
        """Return it ready to be sent."""
        if self.inline or (not self.kept and self.stream.tell() <= INLINE_LIMIT):
            return Packed(self.stream.getvalue(), first=first)
        packed = _in_file([self.stream.getbuffer(), *self.kept])
        packed.first = first
        return packed


def pack(value: Any) -> Packed:
    """Pickle what goes from the caller to its ranks; functions of `__main__` keep living there.

    Raises whatever pickling raises; the caller of `pack` knows what to name.
    """
    return dump(value, CallPickler, again=partial(second_attempt, None)).packed()


def pack_result(value: Any, of_caller: frozenset[str], *, inline: bool = False) -> Packed:
    """Pickle what goes back. Classes that came from the caller go by their cloudpickle id.

    Sending them by value again would overwrite the methods of the caller's own class. With
    `inline`, the result holds no file and can be packed again.
    """
    if value is None:  # most ranks are asked for nothing; a pickler's first use touches many pages
        return Packed(_NONE)
    make = partial(ResultPickler, of_caller=of_caller)
    again = partial(second_attempt_of_result, of_caller)
    return dump(value, make, inline=inline, again=again).packed()


Load = Callable[[Any, list[memoryview]], Any]


def _load(stream: Any, buffers: list[memoryview]) -> Any:
    return pickle.loads(stream, buffers=buffers)


def unpack(packed: Packed, load: Load = _load) -> Any:
    """Return the value. Large buffers are mapped privately: writable, and seen by nobody else.

    Args:
        packed: what was packed.
        load: unpickles a stream, with its buffers.
    """
    if packed.fd is None:
        return load(packed.stream, [])
    size = max(offset + length for offset, length in packed.sections)
    mapped = mmap.mmap(
        packed.fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    views = [memoryview(mapped)[at : at + length] for at, length in packed.sections]
    return load(views[0], views[1:])


def dump(
    value: Any,
    make: Make,
    *,
    inline: bool = False,
    again: Callable[[Exception], Dumper] | None = None,
) -> Dumped:
    """Pickle a value, its large buffers apart.

    Args:
        value: the value.
        make: makes the pickler.
        inline: whether all of it stays in the stream.
        again: what may pickle it when that pickler has failed.
    """
    kept: list[memoryview] = []
    inline = inline or not sockets.PASSES_FILES  # then all travels inside the message

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer stays in the stream."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < BUFFER_LIMIT or inline:
            return True
        kept.append(raw)
        return False

    stream = io.BytesIO()
    pickler: Any = make(stream, keep)
    try:
        with Interruptible():
            pickler.dump(value)
    except (TypeError, pickle.PicklingError, AttributeError) as error:
        if again is None:
            raise
        kept.clear()
        stream = io.BytesIO()
        pickler = again(error)(stream, keep, value)
    return Dumped(stream, kept, pickler, inline)


def _in_file(parts: list[memoryview]) -> Packed:
    """Write the parts into one unnamed file and seal it: nobody can change what others map.

    It is written with write(), not mapped and copied into: that takes twice as long (page faults).
    """
    fd = _unnamed_file()
    sections = []
    at = 0
    try:
        for part in parts:
            sections.append((at, part.nbytes))
            while part.nbytes:
                part = part[os.pwrite(fd, part, at) :]  # noqa: PLW2901  # what is left of it
                at = sections[-1][0] + sections[-1][1] - part.nbytes
            at = -(-at // _ALIGN) * _ALIGN
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return Packed(b"", tuple(sections), fd)


def _unnamed_file() -> int:
    try:
        return os.memfd_create("rankexec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):  # not Linux; a kernel, or a seccomp profile, without it
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _seal(fd: int) -> None:
    if hasattr(os, "memfd_create"):
        import fcntl

        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        with suppress(OSError):  # it is a file on a disk, see above
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
