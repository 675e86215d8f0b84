"""numpy's arrays over files and other shared memory: mapped anew by each rank, never copied.

numpy itself pickles what is in them.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from rankexec._gang import files
from rankexec._gang.descriptors import beside
from rankexec._gang.mappings import Mappings, is_unchanged
from rankexec._gang.refusals import Refused

__all__ = ("choose",)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, for one pickler; None if they are no arrays."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not issubclass(cls, getattr(numpy, "ndarray", ())):
        return None
    if cls.__reduce__ is not numpy.ndarray.__reduce__:  # it knows how it is pickled
        return None
    return _Reducer().reduce


class _Reducer:
    def __init__(self) -> None:
        self._mappings = Mappings()
        self._sources: dict[int, tuple[Any, files.Source | None]] = {}

    def reduce(self, array: Any) -> Any:
        """Reduce an array if it lies in a file, or in memory that is shared."""
        if array.base is None:
            return NotImplemented
        owner, holder = _owner(array)
        if owner is not None and owner.filename is not None:
            return self._of_file(array, owner)
        if type(holder) is bytes or not array.size:
            return NotImplemented
        return self._of_memory(array, holder)

    def _of_file(self, array: Any, owner: Any) -> Any:
        source = self._source(owner)
        if source is None:
            return NotImplemented
        if array is owner:
            return _map_again, (source, _layout(array), _kept(array))
        offset = _address(array) - _address(owner)
        return _view_again, (owner, offset, _layout(array), _kept(array))

    def _source(self, owner: Any) -> files.Source | None:
        """Return the file of a memmap; None if its data go as they are. It is looked for once."""
        if id(owner) not in self._sources:
            source = None
            # What was changed of a copy on write is in this process alone.
            if owner.mode != "c" or is_unchanged(_address(owner)):
                source = self._file(owner)
            self._sources[id(owner)] = owner, source
        return self._sources[id(owner)][1]

    def _file(self, owner: Any) -> files.Source | None:
        size = max(1, owner.offset + owner.nbytes)  # of an empty array numpy's file has one byte
        mapping = self._mappings.find(_address(owner), 1)
        return files.by_name(os.fspath(owner.filename), size, mapping)

    def _of_memory(self, array: Any, holder: Any) -> Any:
        low, high = _bounds(array)
        mapping = self._mappings.find(low, high - low)
        if mapping is None and self._mappings.are_known:  # it is not shared
            return NotImplemented
        # A result is what it was when it was returned.
        if beside() is None and (mapping is None or files.is_memory(mapping)):
            return NotImplemented
        source = mapping and files.by_mapping(mapping)
        if mapping is None or source is None:
            if not isinstance(holder, mmap.mmap):
                return NotImplemented
            raise Refused(
                "it lies in shared memory that has no name, which only forks of this process have",
                "use multiprocessing.shared_memory.SharedMemory, or np.memmap with a path",
            )
        offset = mapping.offset + low - mapping.start
        place = (offset, high - low, _address(array) - low)
        return _in_memory_again, (source, place, mapping.writable, _layout(array), _kept(array))


def _owner(array: Any) -> tuple[Any, Any]:
    """Return the memmap that an array is a part of, and what holds its memory in the end."""
    memmap: Any = sys.modules["numpy"].memmap
    owner, holder = None, array
    while (base := _base(holder)) is not None:
        if isinstance(base, mmap.mmap) and isinstance(holder, memmap) and holder._mmap is base:
            owner = holder
        holder = base
    return owner, holder


def _base(holder: Any) -> Any:
    return holder.obj if isinstance(holder, memoryview) else getattr(holder, "base", None)


def _address(array: Any) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]  # no numpy here


def _bounds(array: Any) -> tuple[int, int]:
    """Return the first address of an array that is not empty, and that after its last."""
    low = high = _address(array)
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def _layout(array: Any) -> tuple[Any, ...]:
    return type(array), array.shape, array.dtype, array.strides, array.flags.writeable


def _kept(array: Any) -> dict[str, Any]:
    """Return an array's attributes: of a memmap, also where it lies."""
    kept = dict(getattr(array, "__dict__", {}))
    kept.pop("_mmap", None)
    if kept.get("mode") == "w+":  # which would empty the file once more
        kept["mode"] = "r+"
    return kept


# --- in a rank ---


def _lay(buffer: Any, offset: int, layout: tuple[Any, ...], kept: dict[str, Any]) -> Any:
    cls, shape, dtype, strides, writable = layout
    ndarray: Any = sys.modules["numpy"].ndarray
    array = ndarray.__new__(cls, shape, dtype, buffer, offset, strides)
    if kept:
        vars(array).update(kept)
    if not writable:
        array.flags.writeable = False
    return array


_ACCESS = {"r": mmap.ACCESS_READ, "c": mmap.ACCESS_COPY}


def _map_again(source: files.Source, layout: tuple[Any, ...], kept: dict[str, Any]) -> Any:
    _, shape, dtype, *_ = layout
    size = math.prod(shape) * dtype.itemsize
    # An empty array shows nothing; to be mapped, a file needs a byte.
    place = (kept["offset"], size) if size else (0, 1)
    access = _ACCESS.get(kept["mode"], mmap.ACCESS_WRITE)
    mapped, within = files.map_again(source, *place, access=access)
    return _lay(mapped, within, layout, {**kept, "_mmap": mapped})


def _view_again(owner: Any, offset: int, layout: tuple[Any, ...], kept: dict[str, Any]) -> Any:
    if "filename" in kept:
        kept["_mmap"] = owner._mmap
    flat = owner.reshape(-1, order="A").view("u1")
    return _lay(flat, offset if flat.size else 0, layout, kept)


def _in_memory_again(
    source: files.Source,
    place: tuple[int, int, int],
    writable: bool,
    layout: tuple[Any, ...],
    kept: dict[str, Any],
) -> Any:
    offset, size, first = place
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    mapped, within = files.map_again(source, offset, size, access=access)
    if "filename" in kept:  # a memmap over a file without a name
        kept["_mmap"] = mapped
    return _lay(mapped, within + first, layout, kept)
