"""How torch computes in a thread: gradients, inference mode, autocast. torch is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

__all__ = ("Modes", "in_modes", "modes")

Modes: TypeAlias = "tuple[bool, bool, tuple[tuple[str, Any], ...]]"
"""Whether gradients are computed, inference mode, and autocast: device types and their dtypes."""


def modes() -> Modes | None:
    """Return what this thread's modes are; None if they are torch's own."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "autocast"):  # not imported, or half
        return None
    casts = tuple((t, torch.get_autocast_dtype(t)) for t in _CASTS if torch.is_autocast_enabled(t))
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return None if grad and not inference and not casts else (grad, inference, casts)


_CASTS = ("cpu", "cuda")


@contextmanager
def in_modes(found: Modes | None) -> Iterator[None]:
    """Have these modes in this thread."""
    if found is None:
        yield
        return
    import torch

    grad, inference, casts = found
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        for device, dtype in casts:
            stack.enter_context(torch.autocast(device, dtype=dtype))
        yield
