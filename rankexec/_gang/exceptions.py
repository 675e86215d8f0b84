"""Exceptions that pickle loses a part of, or cannot make again."""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from typing import Any

from rankexec._gang.dynamic import is_importable

__all__ = ("choose", "rebuild_exception")


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for exceptions of `cls`, or None where pickle does it right."""
    own = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    if any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in own):
        return None
    makers = (getattr(cls, name) for name in ("__new__", "__init__"))
    makes_itself = any(isinstance(maker, types.FunctionType) for maker in makers)
    return _exception if makes_itself or issubclass(cls, _WITH_FIELDS) else None


_WITH_FIELDS = (AttributeError, NameError, ImportError)


def _exception(exc: Any) -> Any:
    """An exception whose `__init__` takes other arguments than it stores in `args`.

    pickle rebuilds exceptions as `cls(*args)`, which raises TypeError for every class such as
    `def __init__(self, path): super().__init__(f"no {path}")`-with-two-arguments. Here neither
    `__new__` nor `__init__` of the class is called: those of its builtin base are, then the state
    is set.
    """
    reduced = exc.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or reduced[0] is not type(exc):
        return NotImplemented  # the class brings its own way
    _, args, *state = reduced
    made_of = (exc.message, exc.exceptions) if _is_group(exc) else args
    fields = {**((state[0] if state else None) or {}), **_fields(exc)}
    return rebuild_exception, (type(exc), made_of, args, fields or None)


def _is_group(exc: Any) -> bool:
    return isinstance(exc, getattr(builtins, "BaseExceptionGroup", ()))  # from 3.11 on


def _fields(exc: BaseException) -> dict[str, Any]:
    """Return what standard exceptions have beside `args`, and what pickle leaves behind."""
    found = {}
    for kind in _WITH_FIELDS:
        for name in ("name", "name_from", "obj") if isinstance(exc, kind) else ():
            slot = vars(kind).get(name)
            # A subclass may have made something of its own of it.
            if slot is not None and getattr(type(exc), name) is slot:
                found[name] = slot.__get__(exc)
    # Not any object: with one that is large or cannot travel the exception would not come.
    return {k: v for k, v in found.items() if v is not None and (k != "obj" or _is_small(v))}


def _is_small(obj: Any) -> bool:
    if isinstance(obj, (type, types.ModuleType)):
        return is_importable(obj)
    return isinstance(obj, (bool, int, float, str))


def rebuild_exception(
    cls: type[BaseException],
    made_of: tuple[Any, ...],
    args: tuple[Any, ...],
    state: dict[str, Any] | None,
) -> BaseException:
    """Make an exception again without calling its own `__new__` and `__init__`."""
    builtin: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    exc: BaseException = builtin.__new__(cls, *made_of)
    builtin.__init__(exc, *args)  # sets errno, code, value, name, ...
    if state:
        exc.__setstate__(state)
    return exc
