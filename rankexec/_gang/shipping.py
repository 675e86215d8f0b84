"""The call on its way out: packed once for all ranks, and named if it cannot be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rankexec._gang.call import Call
from rankexec._gang.wire import Packed, pack
from rankexec.errors import NotShippable

__all__ = ("pack_call",)


def pack_call(call: Call) -> Packed:
    """Pack a call for its children.

    Raises:
        NotShippable: something in it cannot be pickled; names the argument or the variable.
    """
    try:
        return pack(call)
    except MemoryError:
        raise
    except Exception as error:  # pickling runs the user's __reduce__, which may raise anything
        raise NotShippable(*_culprit(call, error)) from error


def _culprit(call: Call, error: Exception) -> tuple[str, str]:
    """Return what cannot be pickled, and why. Each part is tried by itself, only now."""
    for what, value in _parts(call):
        reason = _refusal(value)
        if reason is not None:
            return f"{what} (a {type(value).__name__})", reason
    return f"the call of {_name(call.fn)}", _reason(error)


def _parts(call: Call) -> Iterator[tuple[str, Any]]:
    for index, value in enumerate(call.args):
        yield f"argument {index} of {_name(call.fn)}", value
    for name, value in call.kwargs.items():
        yield f"argument {name!r} of {_name(call.fn)}", value
    yield from _variables(call.fn)
    yield f"the function {_name(call.fn)}", call.fn
    for name, value in call.needed.items():
        yield f"{name!r}, named in need", value
    yield "ctx", call.ctx


def _variables(fn: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function reaches: of enclosing functions, and globals."""
    fn = inspect.unwrap(fn) if callable(fn) else fn
    fn = getattr(fn, "__func__", fn)
    if not inspect.isfunction(fn):
        return
    reached = inspect.getclosurevars(fn)
    for name, value in {**reached.nonlocals, **reached.globals}.items():
        if not inspect.ismodule(value):
            yield f"the variable {name!r} used by {_name(fn)}", value


def _refusal(value: Any) -> str | None:
    try:
        pack(replace(_EMPTY, args=(value,))).close()
    except Exception as error:  # as above
        return _reason(error)
    return None


_EMPTY = Call(print, (), {})


def _reason(error: Exception) -> str:
    return str(error) or repr(error)


def _name(fn: Any) -> str:
    return f"{getattr(fn, '__qualname__', None) or type(fn).__qualname__}()"
