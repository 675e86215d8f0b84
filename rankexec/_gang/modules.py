"""Modules whose code travels (`by_value=`): the globals of their functions."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle

from rankexec._gang.main import is_main, main_namespace

__all__ = (
    "by_value",
    "namespace_of",
    "reduce_module",
    "registered",
)


_registering = threading.RLock()  # a user's __reduce__ may submit, too


@contextmanager
def registered(modules: Sequence[types.ModuleType]) -> Iterator[None]:
    """Let cloudpickle take these modules' code along, and not longer than for this call."""
    main = sys.modules["__main__"]
    if main.__name__ == "__mp_main__":  # else it is taken for a module that can be imported
        modules = [*modules, main]
    if not modules:
        yield
        return
    with _registering:  # cloudpickle's list is the process's
        already = cloudpickle.list_registry_pickle_by_value()
        ours = [module for module in modules if module.__name__ not in already]
        for module in ours:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)


def by_value(namespace: Mapping[str, Any]) -> types.ModuleType | None:
    """Return the module with this namespace if its code is to travel, else None."""
    module = sys.modules.get(namespace.get("__name__", ""))
    if module is None or vars(module) is not namespace:
        return None
    return module if _is_registered(module.__name__) else None


def _is_registered(name: str) -> bool:
    known = cloudpickle.list_registry_pickle_by_value()
    return bool(known) and any(name == k or name.startswith(f"{k}.") for k in known)


def reduce_module(module: types.ModuleType) -> Any:
    """One whose code travels: its functions, in the rank, have its namespace as their globals."""
    if by_value(vars(module)) is None:
        return NotImplemented
    members = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
    names = module.__name__, module.__package__
    return _module_again, names, members, None, None, _fill_module


_OF_EVERY_MODULE = frozenset({"__builtins__", "__cached__", "__loader__", "__name__", "__spec__"})
_arrived: dict[str, types.ModuleType] = {}


def _module_again(name: str, package: str | None) -> types.ModuleType:
    # Not in sys.modules: what is not reached did not travel, and an import wants all of it.
    module = _arrived.setdefault(name, types.ModuleType(name))
    module.__package__ = package
    return module


def _fill_module(module: types.ModuleType, members: dict[str, Any]) -> None:
    vars(module).update(members)


def namespace_of(name: str, package: str | None) -> dict[str, Any]:
    """Return (in a rank) the globals of functions that came from a module by value."""
    return main_namespace() if is_main(name) else vars(_module_again(name, package))
