"""Enums that travel by value: their members arrive as they are, not made again of their values.

cloudpickle hands the values to the class once more. Its own `__new__`, or that of its base, takes
other arguments than it stores, or counts.
"""

from __future__ import annotations

import copyreg
import enum
import operator
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle as _cloudpickle

from rankexec._gang.quiet import without_init_subclass

__all__ = ("choose", "reduce_class")


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for members of an enum; None for others, and where they have their own."""
    by_enum = issubclass(cls, enum.Enum) and cls.__reduce_ex__.__module__ == "enum"
    return _member if by_enum else None


def _member(member: Any) -> Any:
    """By name: values may be equal to themselves only, as functions are."""
    cls, name = type(member), member._name_
    if cls._member_map_.get(name) is not member:  # flags that are combined
        return NotImplemented
    return operator.getitem, (cls, name)


def reduce_class(
    cls: Any, tracked: str, members: dict[str, Any], extra: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what makes an enum again.

    Args:
        cls: the enum.
        tracked: its id at cloudpickle's.
        members: all that is in the class; what is made here is taken out.
        extra: gets the members' own attributes.
    """
    made = {name: [member._value_, _data(member)] for name, member in cls.__members__.items()}
    for name in (*made, "_member_names_", "_member_map_"):
        members.pop(name, None)
    extra["attributes"] = {
        name: {k: v for k, v in vars(member).items() if k not in _OF_EVERY_MEMBER}
        for name, member in cls._member_map_.items()
        if member._name_ == name
    }
    if "_generate_next_value_" in vars(cls):  # for enums that the rank makes of this one
        members["_generate_next_value_"] = vars(cls)["_generate_next_value_"]
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    boundary = getattr(cls, "_boundary_", None)
    return _make, (type(cls), cls.__name__, cls.__bases__, names, made, boundary, tracked)


_OF_EVERY_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})


def _data(member: Any) -> tuple[Any, ...]:
    """Return what the type that a member is of, too, makes it of: a str, an int, a date."""
    made_by, args, *_ = member._member_type_.__reduce_ex__(member, 4)
    newobj: Any = copyreg.__newobj__  # type: ignore[attr-defined]  # it is there
    data: tuple[Any, ...] = args[1:] if made_by is newobj else args
    return data


def _make(
    meta: type[enum.EnumMeta],
    name: str,
    bases: tuple[type, ...],
    names: dict[str, str],
    members: dict[str, list[Any]],
    boundary: Any,
    tracked: str,
) -> Any:
    known = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracked)
    if known is not None:
        return known
    namespace: Any = enum.EnumMeta.__prepare__(name, bases)
    namespace["__new__"], namespace["__init__"] = _again, _nothing
    for key, member in (*names.items(), *members.items()):
        namespace[key] = member
    more = {} if boundary is None else {"boundary": boundary}
    with without_init_subclass(bases):
        made = enum.EnumMeta.__new__(meta, name, bases, namespace, **more)
    for ours in ("__init__", "__new_member__"):  # the class's own are set when it is filled
        if ours in vars(made):
            type.__delattr__(made, ours)
    return _cloudpickle._lookup_class_or_track(tracked, made)


def _again(cls: Any, given: Any) -> Any:
    # Where members are tuples, what is given is in one.
    value, data = given[0] if isinstance(given, tuple) else given
    member = cls._member_type_.__new__(cls, *data)
    member._value_ = value
    return member


def _nothing(*_: Any) -> None:
    """Stand in for `__init__`: a member's attributes travel."""
