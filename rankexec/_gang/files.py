"""A file that memory of the caller's shows: found, and mapped anew by each rank."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass

from rankexec._gang.descriptors import Handed, beside
from rankexec._gang.mappings import Mapping, descriptor_of
from rankexec._gang.refusals import Refused

__all__ = ("Source", "by_mapping", "by_name", "is_memory", "map_again")


@dataclass(frozen=True)
class Source:
    """How a rank comes to a file: by its name, or by a descriptor that is handed over."""

    path: str
    inode: int
    handed: Handed | None = None

    def check(self, size: int) -> None:
        """Raise OSError, with the path, if it is not that file any more."""
        os.close(self.open(size, writable=False))

    def open(self, size: int, *, writable: bool) -> int:
        """Return a descriptor. Raises OSError, with the path, if it is not that file any more."""
        if self.handed is not None:
            return self.handed.detach()
        descriptor = os.open(self.path, os.O_RDWR if writable else os.O_RDONLY)
        if reason := _wrong(os.fstat(descriptor), self.inode, size):
            os.close(descriptor)
            raise OSError(f"the file {self.path!r}, in which an array lies, {reason}")
        return descriptor


def _wrong(found: os.stat_result, inode: int, size: int) -> str:
    if found.st_ino != inode:
        return "is another file by now"
    if found.st_size < size:
        return f"was truncated: it has {found.st_size} bytes, and the array needs {size}"
    return ""


def by_name(path: str, size: int, mapping: Mapping | None) -> Source | None:
    """Return the file of that name, which has been mapped.

    Args:
        path: its name.
        size: how many bytes it must have.
        mapping: where the kernel has it, if that is known.

    Returns:
        The file; None (for a result) if it has no name any more.

    Raises:
        Refused: it is gone, is another one, or too short.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        gone = f"its file {path!r} cannot be found: {error.strerror}"
    else:
        other = mapping is not None and _is_other(mapping, path, found)
        gone = f"its file {path!r} was replaced or deleted since it was mapped" if other else ""
    if gone and beside() is None:
        return None
    if gone:
        raise Refused(gone, _MAP_IT_ANEW)
    if reason := _wrong(found, found.st_ino, size):
        raise Refused(f"its file {path!r} {reason}", _MAP_IT_ANEW)
    return Source(path, found.st_ino)


_MAP_IT_ANEW = "map it anew, or pass a copy of what this process still has of it"


def _is_other(mapping: Mapping, path: str, found: os.stat_result) -> bool:
    # On file systems in layers the kernel's numbers are not those of stat; its names are.
    same = mapping.file == (found.st_dev, found.st_ino) or mapping.path == os.path.realpath(path)
    return mapping.deleted or not same


def by_mapping(mapping: Mapping) -> Source | None:
    """Return the file that is mapped there; None if it is none that others can map."""
    if not mapping.deleted:
        try:
            found = os.stat(mapping.path)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):  # a device
            return None
        return Source(mapping.path, found.st_ino)
    taking = beside()
    descriptor = descriptor_of(mapping) if taking else None
    if taking is None or descriptor is None:
        return None
    return Source(mapping.path, 0, taking.DupFd(taking.duplicate_for_child(descriptor)))


def is_memory(mapping: Mapping) -> bool:
    """Return whether what is mapped is no file on a disk."""
    return mapping.deleted or mapping.path.startswith("/dev/shm/")  # noqa: S108  # nothing is made


def map_again(source: Source, offset: int, size: int, *, access: int) -> tuple[mmap.mmap, int]:
    """Map part of a file.

    Args:
        source: the file.
        offset: where in it the part begins.
        size: how many bytes it has.
        access: as `mmap` names it.

    Returns:
        The mapping, and where in it the part begins.
    """
    within = offset % mmap.ALLOCATIONGRANULARITY
    descriptor = source.open(offset + size, writable=access == mmap.ACCESS_WRITE)
    try:
        start = offset - within
        return mmap.mmap(descriptor, within + size, access=access, offset=start), within
    finally:
        os.close(descriptor)
