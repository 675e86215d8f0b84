"""What of this process's memory is shared, and with which file: the kernel's own list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

__all__ = ("Mapping", "Mappings", "descriptor_of", "is_unchanged")


@dataclass(frozen=True)
class Mapping:
    """A range of addresses that shows part of a file, and writes to it."""

    start: int
    stop: int
    offset: int
    """In the file."""
    file: tuple[int, int]
    """Its device and inode."""
    path: str
    deleted: bool
    writable: bool


class Mappings:
    """The shared ones, as they were when they were first asked for. None without Linux's /proc."""

    def __init__(self) -> None:
        self._shared: list[Mapping] | None = None

    @property
    def are_known(self) -> bool:
        """Whether the kernel tells."""
        return os.path.exists(_MAPS)

    def find(self, address: int, size: int) -> Mapping | None:
        """Return the shared mapping that these bytes are in."""
        if self._shared is None:
            self._shared = list(_shared())
        for mapping in self._shared:
            if mapping.start <= address and address + size <= mapping.stop:
                return mapping
        return None


_MAPS = "/proc/self/maps"
_LINE = re.compile(
    r"(?P<start>\w+)-(?P<stop>\w+) (?P<modes>\S{4}) (?P<offset>\w+) "
    r"(?P<major>\w+):(?P<minor>\w+) (?P<inode>\d+) *(?P<path>.*)"
)
_DELETED = " (deleted)"


def _shared() -> Iterator[Mapping]:
    if not os.path.exists(_MAPS):
        return
    # Whatever else is wrong, a limit of open files say, is raised: shared memory would be copied.
    with open(_MAPS, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            found = _LINE.match(line)
            if found is None or found["modes"][3] != "s":
                continue
            path = found["path"].replace("\\012", "\n")
            yield Mapping(
                int(found["start"], 16),
                int(found["stop"], 16),
                int(found["offset"], 16),
                (os.makedev(int(found["major"], 16), int(found["minor"], 16)), int(found["inode"])),
                path.removesuffix(_DELETED),
                deleted=path.endswith(_DELETED),
                writable=found["modes"][1] == "w",
            )


def descriptor_of(mapping: Mapping) -> int | None:
    """Return a descriptor of this process that has the same file open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            found = os.fstat(int(name))
            if (found.st_dev, found.st_ino) == mapping.file:
                return int(name)
    return None


def is_unchanged(address: int) -> bool:
    """Return whether a private mapping of a file still shows what the file has; False: unknown."""
    inside = False
    with suppress(OSError), open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := _LINE.match(line):
                inside = int(found["start"], 16) <= address < int(found["stop"], 16)
            elif inside and line.startswith(("Anonymous:", "Swap:")) and line.split()[1] != "0":
                return False
            elif inside and line.startswith("VmFlags:"):
                return True
    return False
