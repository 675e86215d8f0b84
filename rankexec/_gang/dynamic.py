"""Functions and classes that travel by value: what cloudpickle's way of reducing them leaves out.

cloudpickle makes functions and classes empty and fills them afterwards. Here its reductions get
what they lack. Its tables of dynamic classes are private to it (3.1); this file, `enums`, `quiet`
and `picklers` are the only ones that read them.
"""

from __future__ import annotations

import ast
import dis
import enum
import inspect
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cloudpickle import cloudpickle as _cloudpickle

from rankexec._gang import enums
from rankexec._gang.definitions import Known
from rankexec._gang.main import is_main, main_namespace
from rankexec._gang.quiet import came_by_value, quiet, without_init_subclass

__all__ = ("add_to_class", "add_to_function", "as_known", "globals_of", "is_importable")


_empty: weakref.WeakSet[Any] = weakref.WeakSet()
"""Functions and classes that have been made, and not filled yet."""


def is_importable(obj: Any) -> bool:
    """Return whether another process finds `obj` by its module and qualified name."""
    found = _cloudpickle._lookup_module_and_qualname(obj)
    return found is not None and not _cloudpickle._is_registered_pickle_by_value(found[0])


# --- functions ---


def add_to_function(function: types.FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Complete cloudpickle's reduction of a function: its own name, its hints, its parameters."""
    _, _, (_, slots), *_ = reduced
    namespace = function.__globals__
    names = slots["__globals__"]
    if namespace is main_namespace() and namespace.get(function.__name__) is function:
        # A pool that the function starts in its rank pickles it by name.
        names[function.__name__] = function
    names.update(_hints(function.__annotations__, namespace))
    for name in _read_by_classes(function.__code__):
        if name in namespace:
            names.setdefault(name, namespace[name])
    if parameters := getattr(function, "__type_params__", ()):
        slots["__type_params__"] = parameters
    return reduced


def as_known(reduced: tuple[Any, ...], known: Known) -> tuple[Any, ...]:
    """Let a function be what a rank of a session has, if it has it."""
    make, args, state, *_ = reduced
    code = args[0] if known.only and "__code__" in known.only else None
    return _make_once, (known.number, make, args), (state, known.only, code), None, None, _fill_once


def _make_once(number: int, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    function = _functions.get(number)
    if function is None:
        function = _functions[number] = make(*args)
        _empty.add(function)
    return function


_functions: weakref.WeakValueDictionary[int, types.FunctionType] = weakref.WeakValueDictionary()
"""Those that have come to this rank."""


def _fill_once(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    (attributes, slots), only, code = state
    if only is None or function in _empty:
        _empty.discard(function)
        _cloudpickle._function_setstate(function, (attributes, slots))
        return
    function.__globals__.update(slots["__globals__"])
    given = {**attributes, **slots, "__code__": code}
    for name in only & given.keys():
        setattr(function, name, given[name])


def globals_of(function: types.FunctionType) -> set[str]:
    """Return the names that a function's code reads or sets in its globals."""
    code = function.__code__
    return {*_cloudpickle._extract_code_globals(code), *_read_by_classes(code)}


def _read_by_classes(code: types.CodeType) -> Iterator[str]:
    """Yield the names that bodies of classes within a function read: not as its globals.

    A body has names of its own, and asks for each name at run time whose it is.
    """
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if not inner.co_flags & inspect.CO_OPTIMIZED:
                yield from (i.argval for i in dis.get_instructions(inner) if i.opname in _READS)
            yield from _read_by_classes(inner)


_READS = frozenset({"LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


def _hints(annotations: Mapping[str, Any], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what annotations name in strings: `typing.get_type_hints` looks it up.

    Types and modules only: a string may say anything, and data that is not reached stays here.
    """
    found = {}
    for text in _strings(annotations.values()):
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:  # words
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                value = namespace.get(node.id)
                if isinstance(value, (type, types.ModuleType)) or _is_typing(value):
                    found[node.id] = value
    return found


def _is_typing(value: Any) -> bool:
    return type(value).__module__ in ("typing", "types", "typing_extensions")


def _strings(annotations: Iterable[Any]) -> Iterator[str]:
    for annotation in annotations:
        if isinstance(annotation, str):
            yield annotation
        elif isinstance(annotation, typing.ForwardRef):
            yield annotation.__forward_arg__
        else:
            yield from _strings(typing.get_args(annotation))


# --- classes ---


def add_to_class(
    cls: type, reduced: tuple[Any, ...], *, name_it: bool, only: frozenset[str] | None = None
) -> tuple[Any, ...]:
    """Complete cloudpickle's reduction of a class.

    Args:
        cls: the class.
        reduced: what cloudpickle says.
        name_it: whether names are set in `__main__`: the class's own, if it is known by it, as
            DataLoader workers and pools that a rank starts pickle instances by it; and what its
            annotations name in strings.
        only: which attributes are set where the class is there already; None: all.
    """
    if reduced[0] is not _cloudpickle._make_skeleton_class and not issubclass(cls, enum.Enum):
        return reduced  # type(None) and its like
    make, args, (members, extra), *_ = reduced
    if issubclass(cls, enum.Enum):
        make, args = enums.reduce_class(cls, tracked=args[-2], members=members, extra=extra)
    else:
        meta, name, _, namespace, tracked, _ = args
        # The bases as they are: to make them again of `__orig_bases__` (NamedTuple, TypedDict)
        # runs what made the class.
        make, args = _make_class, (meta, name, cls.__bases__, namespace, tracked)
        namespace["__qualname__"] = cls.__qualname__
        if "__orig_bases__" in vars(cls):
            namespace["__orig_bases__"] = cls.__orig_bases__  # type: ignore[attr-defined]  # there
        if "__slots__" in vars(cls):
            namespace["__slots__"] = cls.__slots__  # type: ignore[attr-defined]  # it is there
            for name in _slots(cls):
                members.pop(name, None)
    if name_it and is_main(cls.__module__):
        main = main_namespace()
        names = _hints(vars(cls).get("__annotations__", {}), main)
        if main.get(cls.__name__) is cls:
            names[cls.__name__] = cls
        extra["names"] = names
    extra["only"] = only
    return make, args, (members, extra), None, None, _fill_class


def _slots(cls: Any) -> list[str]:
    """Return the attributes that `__slots__` makes; Python mangles private names."""
    slots = [cls.__slots__] if isinstance(cls.__slots__, str) else cls.__slots__
    prefix = f"_{cls.__name__.lstrip('_')}"
    return [
        prefix + name if name.startswith("__") and not name.endswith("__") else name
        for name in slots
    ]


def _make_class(
    meta: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any], tracked: str
) -> Any:
    """Make an empty class without running what came with it: metaclass and `__init_subclass__`.

    They ran where the class was defined, on a class with content; what they did there travels.
    """
    known = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracked)
    if known is not None:
        return known
    with without_init_subclass(bases):
        librarys = next(kind for kind in meta.__mro__ if not _is_passed_over(kind))
        if librarys is meta:
            made = types.new_class(
                name, bases, {"metaclass": meta}, lambda ns: ns.update(namespace)
            )
        else:
            made = librarys.__new__(meta, name, bases, namespace)
    _empty.add(made)
    return _cloudpickle._lookup_class_or_track(tracked, made)


def _is_passed_over(meta: type) -> bool:
    # TypedDict's refuses what it has made itself.
    return came_by_value(meta) or meta.__name__ == "_TypedDictMeta"


def _fill_class(cls: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    members, extra = state
    only = extra.get("only")
    if only is not None and cls not in _empty:
        members = {name: members[name] for name in members if name in only or name == _REGISTRY}
    _empty.discard(cls)
    with quiet(type(cls).__mro__, "__setattr__", lambda _: type.__setattr__):
        _cloudpickle._class_setstate(cls, (members, {}))
    for name, attributes in extra.get("attributes", {}).items():
        vars(cls.__members__[name]).update(attributes)
    main_namespace().update(extra.get("names", {}))


_REGISTRY = "_abc_impl"
"""Of an abstract class. What is registered with it is added to what is there."""
