"""What annotations are made of, defined where no rank can import it: it goes by value."""

from __future__ import annotations

import functools
import gc
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle as _cloudpickle

from rankexec._gang.dynamic import is_importable

__all__ = ("choose",)


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they are of no such kind."""
    if cls.__name__ == "TypeAliasType" and cls.__module__ == "typing_extensions":
        return _backported_alias
    return _REDUCERS.get(cls)


def _new_type(kind: Any) -> Any:
    if is_importable(kind):
        return NotImplemented
    return typing.NewType, (kind.__name__, kind.__supertype__), vars(kind)


# --- TypeVar, ParamSpec, TypeVarTuple ---


def _parameter(kind: Any) -> Any:
    """With what cloudpickle leaves out: a default, the variance, the module."""
    if is_importable(kind):
        return NotImplemented
    given = {
        name: value
        for name in ("bound", "covariant", "contravariant", *_NEWER)
        if (value := getattr(kind, f"__{name}__", None))
    }
    if sys.version_info >= (3, 13) and kind.has_default():
        given["default"] = kind.__default__
    named = (kind.__name__, *getattr(kind, "__constraints__", ()))
    tracked = _cloudpickle._get_or_create_tracker_id(kind)
    state = {name: getattr(kind, name) for name in _ATTRIBUTES if hasattr(kind, name)}
    return _parameter_again, (type(kind), named, given, tracked), (None, state)


_NEWER = ("infer_variance",) if sys.version_info >= (3, 12) else ()
_ATTRIBUTES = ["__module__"]
# typing_extensions sets as attributes what an older Python does not take.
if sys.version_info < (3, 12):
    _ATTRIBUTES += ["__infer_variance__"]
if sys.version_info < (3, 13):
    _ATTRIBUTES += ["__default__", "has_default"]


def _parameter_again(cls: Any, named: tuple[Any, ...], given: dict[str, Any], tracked: str) -> Any:
    return _cloudpickle._lookup_class_or_track(tracked, cls(*named, **given))


# --- `type` statements ---


def _alias(alias: Any) -> Any:
    """Made first and given its value then, as that may name the alias."""
    if is_importable(alias):
        return NotImplemented
    try:
        evaluate = functools.partial(_same, alias.__value__)
    except Exception:  # it names what is not there, and may be there when it is asked for
        evaluate = _evaluated_by(alias)
    made_of = alias.__name__, alias.__module__, alias.__type_params__
    return _empty_alias, made_of, evaluate, None, None, _fill_alias


def _evaluated_by(alias: Any) -> Any:
    return next(ref for ref in gc.get_referents(alias) if isinstance(ref, types.FunctionType))


def _same(value: Any) -> Any:
    return value


def _empty_alias(name: str, module: str, parameters: tuple[Any, ...]) -> Any:
    """Make one by a `type` statement: nothing else makes one whose value comes later."""
    code = compile("type Alias = evaluate()", module, "exec")
    constants = {"Alias": name, None: parameters}
    code = code.replace(co_consts=tuple(constants.get(c, c) for c in code.co_consts))
    namespace = {"__name__": module}
    exec(code, namespace)  # noqa: S102  # it is the text above
    return namespace["Alias"]


def _fill_alias(alias: Any, evaluate: Callable[[], Any]) -> None:
    _evaluated_by(alias).__globals__["evaluate"] = evaluate


def _backported_alias(alias: Any) -> Any:
    if is_importable(alias):
        return NotImplemented
    return object.__new__, (type(alias),), vars(alias), None, None, _fill_backported


def _fill_backported(alias: Any, attributes: dict[str, Any]) -> None:
    vars(alias).update(attributes)  # it refuses to have them set


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    getattr(typing, name): reduce
    for name, reduce in (
        ("NewType", _new_type),
        ("TypeVar", _parameter),
        ("ParamSpec", _parameter),
        ("TypeVarTuple", _parameter),
        ("TypeAliasType", _alias),
    )
    if hasattr(typing, name)
}
"""By exact type."""
