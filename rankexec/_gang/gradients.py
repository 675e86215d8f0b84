"""What torch's pickling leaves out of a tensor without a word: its gradient, and its hooks.

A copy within a process has the gradient (`copy.deepcopy`), and a fork would have both: a batch of
gradients that is accumulated in several calls, clipping by hooks. Handles that remove a hook keep a
weak reference to the dict that it is in, so the dict itself travels. And each process counts the
ids of its hooks by itself.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

__all__ = ("choose", "next_hook_id", "take_hook_id")


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they are no tensors."""
    tensor: Any = getattr(sys.modules.get("torch"), "Tensor", None)
    return _tensor if tensor is not None and issubclass(cls, tensor) else None


def _tensor(tensor: Any) -> Any:
    beside = _beside(tensor)
    if not beside:
        return NotImplemented
    make, args, *state = tensor.__reduce_ex__(5)
    if state:  # a user's own way, which knows what it wants
        return NotImplemented
    # As a state, after the tensor itself: a hook may refer to it.
    return make, args, beside, None, None, _add


def _beside(tensor: Any) -> dict[str, Any]:
    found = {}
    if tensor.is_leaf and tensor.grad is not None:  # of others torch warns
        found["grad"] = tensor.grad
    for name in _HOOKS:
        if hooks := getattr(tensor, name, None):
            found[name] = _shippable(hooks)
    return found


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _shippable(hooks: OrderedDict[int, Any]) -> OrderedDict[int, Any]:
    """Return those that `torch.utils.hooks.unserializable_hook` does not keep here."""
    stay = [key for key, hook in hooks.items() if hasattr(hook, "__torch_unserializable__")]
    if not stay:
        return hooks
    return OrderedDict((key, hook) for key, hook in hooks.items() if key not in stay)


def _add(tensor: Any, beside: dict[str, Any]) -> None:
    for name, value in beside.items():
        setattr(tensor, name, value)


def next_hook_id() -> int:
    """Return the id that the next hook gets here; 0 without torch."""
    hooks: Any = sys.modules.get("torch.utils.hooks")
    return 0 if hooks is None else int(hooks.RemovableHandle.next_id)


def take_hook_id(number: int) -> None:
    """Let new hooks have other ids than those that came from where `number` was the next."""
    hooks: Any = sys.modules.get("torch.utils.hooks")
    if hooks is not None and hooks.RemovableHandle.next_id < number:
        hooks.RemovableHandle.next_id = number
