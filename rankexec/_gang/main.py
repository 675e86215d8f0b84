"""`__main__`: which namespace it is, and what other libraries find of it."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ("is_main", "main_as_module", "main_namespace", "note_main")

_noted: dict[str, Any] | None = None
"""The namespace of the program, if it is not that of the module `__main__`."""


def is_main(name: str | None) -> bool:
    """Return whether this is the program's module, also in a process that it has spawned."""
    return name in ("__main__", "__mp_main__")


def main_namespace() -> dict[str, Any]:
    """Return the namespace of this process's `__main__`."""
    return sys.modules["__main__"].__dict__ if _noted is None else _noted


def note_main(fn: Any) -> None:
    """Note which namespace is `__main__`, by a function that is to run, or by who submits it.

    Profilers, `trace`, `exec` and the like run a program in a namespace of their own, and leave
    `sys.modules` as it is. (IPython's `%run` does, too, but a notebook's is the notebook's.)
    """
    global _noted  # noqa: PLW0603  # of the process, as `__main__` is
    modules = sys.modules["__main__"].__dict__
    if "get_ipython" in modules:
        return
    for namespace in itertools.chain(_namespaces_of(fn), _callers()):
        if is_main(namespace.get("__name__")):
            _noted = None if namespace is modules else namespace
            return


def _namespaces_of(fn: Any) -> Iterator[dict[str, Any]]:
    if isinstance(fn, functools.partial):
        yield from _namespaces_of(fn.func)
    elif isinstance(fn, types.MethodType):
        yield from _namespaces_of(fn.__func__)
    elif isinstance(fn, types.FunctionType):
        yield fn.__globals__
    else:
        members = vars(fn if isinstance(fn, type) else type(fn)).values()
        yield from (m.__globals__ for m in members if isinstance(m, types.FunctionType))


def _callers() -> Iterator[dict[str, Any]]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_globals
        frame = frame.f_back


def main_as_module() -> types.ModuleType:
    """Return `__main__` as the module that other libraries look for."""
    return sys.modules["__main__"] if _noted is None else _Shown(_noted)


class _Shown(types.ModuleType):
    """A module whose attributes are in a namespace that was made by others."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        object.__setattr__(self, "_namespace", namespace)

    def __getattribute__(self, name: str) -> Any:
        namespace = object.__getattribute__(self, "_namespace")
        if name == "__dict__":
            return namespace
        return namespace[name] if name in namespace else object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
