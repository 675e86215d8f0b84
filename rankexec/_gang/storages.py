"""Storages of torch in memory that is shared, or over files: they stay so in the ranks.

All others go as `tensors` has them.
"""

from __future__ import annotations

import mmap
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rankexec._gang import files, tensors
from rankexec._gang.descriptors import Beside, beside
from rankexec._gang.mappings import Mappings

__all__ = ("choose",)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, for one pickler; None if they are no storages."""
    storage: Any = sys.modules.get("torch.storage")
    if storage is None or not issubclass(cls, storage.UntypedStorage):
        return None
    return _Reducer().reduce


class _Reducer:
    def __init__(self) -> None:
        self._mappings = Mappings()

    def reduce(self, storage: Any) -> Any:
        """Reduce a storage, wherever it lies."""
        reduced = NotImplemented
        if storage.device.type == "cpu" and storage.nbytes():
            if storage.is_shared():
                reduced = self._shared(storage)
            elif not storage.resizable():  # it is not torch's own memory: numpy's, say
                reduced = self._foreign(storage)
        return tensors.untyped(storage) if reduced is NotImplemented else reduced

    def _shared(self, storage: Any) -> Any:
        """One of `share_memory_()`, of a DataLoader's worker, or of `from_file`."""
        size = storage.nbytes()
        mapping = self._mappings.find(storage.data_ptr(), size)
        if path := storage.filename:
            source = files.by_name(path, size, mapping)
            return NotImplemented if source is None else (_from_file, (source, size))
        taking = beside()
        if taking is None:  # a result is what it was when it was returned
            return NotImplemented
        # torch shares by descriptors or by names. To ask for the way that is not this storage's
        # makes it another one, which those who have it already do not see.
        if mapping is None:
            return self._unknown(storage, taking)
        if not mapping.deleted:
            # A name, for which torch counts who has it; ranks that are killed would stay counted.
            return self._foreign(storage)
        return _by_descriptor(storage, taking)

    def _unknown(self, storage: Any, taking: Beside) -> Any:
        """One of which the kernel does not say how it is shared."""
        if self._mappings.are_known:  # a file that is mapped, and not shared
            return NotImplemented
        if sys.modules["torch.multiprocessing"].get_sharing_strategy() == "file_system":
            return _attach, storage._share_filename_cpu_()
        return _by_descriptor(storage, taking)

    def _foreign(self, storage: Any) -> Any:
        """One over memory that torch has not made: of a memmap, of multiprocessing's."""
        address, size = storage.data_ptr(), storage.nbytes()
        mapping = self._mappings.find(address, size)
        if mapping is None or (beside() is None and files.is_memory(mapping)):
            return NotImplemented
        source = files.by_mapping(mapping)
        if source is None:
            return NotImplemented
        offset = mapping.offset + address - mapping.start
        return _map_again, (source, offset, size, mapping.writable)


def _by_descriptor(storage: Any, taking: Beside) -> Any:
    descriptor, size = storage._share_fd_cpu_()
    if descriptor < 0:  # of a file that was mapped privately
        return NotImplemented
    rebuild = sys.modules["torch.multiprocessing"].reductions.rebuild_storage_fd
    return rebuild, (type(storage), taking.DupFd(taking.duplicate_for_child(descriptor)), size)


# --- in a rank ---


def _from_file(source: files.Source, size: int) -> Any:
    import torch

    source.check(size)  # torch would make a file that is not there, and fill up a short one
    return torch.UntypedStorage.from_file(source.path, shared=True, nbytes=size)


def _attach(manager: bytes, handle: bytes, size: int) -> Any:
    """As torch does, but for its count of who has it: there is one sender for several ranks."""
    import torch

    return torch.UntypedStorage._new_shared_filename_cpu(manager, handle, size)


def _map_again(source: files.Source, offset: int, size: int, writable: bool) -> Any:
    import torch

    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    mapped, within = files.map_again(source, offset, size, access=access)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it may not be written to, here as there
        tensor = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=within)
    return tensor.untyped_storage()
