"""Storages of torch on the wire: as buffers, so that large ones are mapped and never copied.

torch's own way writes every storage into a file of its format and that file into the stream, once
for every tensor that shares it. Here a storage goes once, views and tied parameters stay what they
are, and every dtype goes, because only bytes do.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

from rankexec._torch import has_own_gpu

__all__ = ("choose", "device_here", "is_rank", "untyped")

_rank_here: tuple[int, int] | None = None


def is_rank(local_rank: int, local_world_size: int) -> None:
    """Note that this process is a rank: what comes from a GPU arrives on the rank's own."""
    global _rank_here  # noqa: PLW0603  # a process is a rank once
    _rank_here = (local_rank, local_world_size)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if it has nothing to do with storages."""
    storage: Any = sys.modules.get("torch.storage")
    if storage is None:
        return None
    if cls is types.FunctionType:
        return _function
    if not str(cls.__module__).startswith("torch"):
        return None
    if issubclass(cls, storage.UntypedStorage):
        return untyped
    if issubclass(cls, storage.TypedStorage):
        return _typed
    return None


def _typed(storage: Any) -> Any:
    # pickle remembers the inner one, and so keeps shared what was shared.
    return _rebuild_typed, (storage._untyped_storage, storage.dtype)


def _rebuild_typed(untyped: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def untyped(storage: Any) -> Any:
    """Reduce a storage to a buffer."""
    kind = storage.device.type
    if kind == "meta":
        return NotImplemented
    here = storage if kind == "cpu" else storage.cpu()
    size = here.nbytes()
    if not size:
        return _rebuild_untyped, (pickle.PickleBuffer(b""), kind)
    memory: Any = (ctypes.c_char * size).from_address(here.data_ptr())
    memory.storage = here  # as long as the buffer is needed, so is the storage
    return _rebuild_untyped, (pickle.PickleBuffer(memory), kind)


def _rebuild_untyped(buffer: Any, kind: str) -> Any:
    import torch

    if not len(buffer):
        return torch.UntypedStorage(0, device=device_here(torch, kind))
    tensor = torch.frombuffer(buffer, dtype=torch.uint8)
    device = device_here(torch, kind)
    if device.type != "cpu":
        tensor = tensor.to(device)
    elif isinstance(buffer, bytearray):  # a small one: as torch makes them, aligned and resizable
        tensor = tensor.clone()
    return tensor.untyped_storage()


def _function(function: Any) -> Any:
    """Tensors of torch's newest dtypes (float8, uint16) name a function that wants a typed storage.

    They give it an untyped one, which only torch's own way of pickling turns into a typed one.
    """
    if function is sys.modules["torch"]._utils._rebuild_tensor_v3:
        return _rebuilder, ()
    return NotImplemented


def _rebuilder() -> Callable[..., Any]:
    return _rebuild_tensor


def _rebuild_tensor(untyped: Any, *args: Any) -> Any:
    import torch

    return torch._utils._rebuild_tensor_v3(_rebuild_typed(untyped, torch.uint8), *args)


def device_here(torch: Any, kind: str) -> Any:
    """Return where a storage arrives that was on a device of some kind."""
    if kind != "cuda":
        return torch.device(kind)
    if _rank_here is None:  # in the caller, which is given no CUDA context that it has not made
        return torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    local_rank, ranks = _rank_here
    own = has_own_gpu(torch, ranks)
    return torch.device("cuda", local_rank) if own else torch.device("cpu")
