"""What people ship and cloudpickle loses or refuses: one reducer each, with its reason.

A reducer takes an object and returns what `__reduce__` returns. `choose` finds the one for a type;
None means that cloudpickle does it right.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from typing import Any

from rankexec._gang import tensors

Reducer = Callable[[Any], Any]

__all__ = ("Reducer", "choose")


def choose(cls: type) -> Reducer | None:
    """Return the reducer for instances of `cls`, or None where cloudpickle needs no help."""
    if (
        issubclass(cls, BaseException)
        and isinstance(cls.__init__, types.FunctionType)
        and not _reduces_itself(cls)
    ):
        return _exception
    if reducer := tensors.choose(cls):
        return reducer
    if issubclass(cls, io.IOBase) or cls is io.TextIOWrapper:
        return _file
    return None


def _reduces_itself(cls: type) -> bool:
    own = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    return any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in own)


def _exception(exc: BaseException) -> Any:
    """An exception whose `__init__` takes other arguments than it stores in `args`.

    pickle rebuilds exceptions as `cls(*args)`, which raises TypeError for every class such as
    `def __init__(self, path): super().__init__(f"no {path}")`-with-two-arguments. Here `__init__`
    of the class is not called: `__new__`, then `__init__` of its builtin base, then the state.
    """
    reduced = exc.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or reduced[0] is not type(exc):
        return NotImplemented  # the class brings its own way
    _, args, *state = reduced
    return rebuild_exception, (type(exc), args, state[0] if state else None)


def rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any] | None
) -> BaseException:
    """Make an exception again without calling its own `__init__`."""
    exc = cls.__new__(cls, *args)
    builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    builtin.__init__(exc, *args)  # type: ignore[misc]  # sets errno, code, value, name, ...
    if state:
        exc.__setstate__(state)
    return exc


def _file(file: Any) -> Any:
    """An open file: cloudpickle ships a copy of its content and says nothing.

    The standard streams go by name: they are the rank's own.
    """
    for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    if type(file) in (io.BytesIO, io.StringIO):
        return NotImplemented
    raise TypeError(f"it is an open file, {getattr(file, 'name', '')!r}")
