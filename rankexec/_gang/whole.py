"""Modules of torch that it refuses to pickle whole: scripted, traced and parametrized ones."""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rankexec._gang.tensors import device_here

__all__ = ("choose",)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they are no such modules."""
    if cls.__module__ == "torch.nn.utils.parametrize" and cls.__name__.startswith("Parametrized"):
        return _parametrized
    jit: Any = sys.modules.get("torch.jit")
    if jit is not None and issubclass(cls, (jit.ScriptModule, jit.ScriptFunction)):
        return _scripted
    return None


# --- parametrized: torch gives each such module a class of its own, which refuses ---


def _parametrized(module: Any) -> Any:
    (kind,) = type(module).__bases__
    # An object has this method from Python 3.11 on.
    state = kind.__getstate__(module) if hasattr(kind, "__getstate__") else dict(vars(module))
    content = state, list(module.parametrizations)
    return kind.__new__, (kind,), content, None, None, _parametrize_again


def _parametrize_again(module: Any, content: tuple[Any, list[str]]) -> None:
    # Private, but what is public parametrizes tensors that are not yet.
    from torch.nn.utils.parametrize import _inject_new_class, _inject_property

    state, names = content
    module.__setstate__(state)
    _inject_new_class(module)
    for name in names:
        _inject_property(module, name)


# --- scripted and traced: they have a format of their own ---


def _scripted(module: Any) -> Any:
    import torch

    file = io.BytesIO()
    with _quietly():
        torch.jit.save(module, file)
    tensors = [*module.parameters(), *module.buffers()] if hasattr(module, "parameters") else []
    kinds = {tensor.device.type for tensor in tensors}
    kind = kinds.pop() if len(kinds) == 1 else None
    return _load_again, (pickle.PickleBuffer(file.getbuffer()), kind)


def _load_again(buffer: Any, kind: str | None) -> Any:
    import torch

    device = None if kind is None else device_here(torch, kind)
    with _quietly():
        return torch.jit.load(io.BytesIO(buffer), map_location=device)


@contextmanager
def _quietly() -> Iterator[None]:
    """Whoever has scripted a module has been told that this is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14's category for it
        yield
