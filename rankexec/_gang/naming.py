"""Where in a call an object is: the argument or variable, and the path from there."""

from __future__ import annotations

import types
from typing import Any

from rankexec._gang.call import Call
from rankexec._gang.replay import Frame

__all__ = ("name_of", "place")


def name_of(fn: Any) -> str:
    """Return what a callable is called in a message."""
    return f"{getattr(fn, '__qualname__', None) or type(fn).__qualname__}()"


def place(frames: list[Frame]) -> str:
    """Return in words where the last frame's object is; the first frame is the call.

    Many frames hold what pickle takes an object apart into, which no user knows: for each kind of
    object the way to the next one that has a name is different.
    """
    walk = _Walk(frames)
    while walk.at < len(frames) - 1:
        before = walk.at
        walk.step()
        walk.at = max(walk.at, before + 1)
    return walk.text()


_LONGEST = 120
"""Characters of a path that are shown."""


class _Walk:
    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self.at = 0
        self._base = "the call"
        self._variable = ""
        self._user = ""
        self._path = ""

    def text(self) -> str:
        path = self._path
        if len(path) > _LONGEST:
            path = f"{path[: _LONGEST // 2]} ... {path[-_LONGEST // 2 :]}"
        if not self._variable:
            return f"{self._base}{' at ' if path.startswith(('.', '[')) else ''}{path}"
        if path:
            return f"{self._variable}{path}, used by {self._user}"
        return f"the variable {self._variable!r}, used by {self._user}"

    def step(self) -> None:
        frame = self._frames[self.at]
        owner = frame.obj
        if isinstance(owner, Call) and self.at == 0:
            self._enter(owner)
        elif isinstance(owner, types.FunctionType):
            self._through_function(frame)
        elif isinstance(owner, types.CellType):
            self.at += 2  # (content,), content
        elif isinstance(owner, type):
            self._through_class(frame)
        else:
            self._through_instance(frame)

    def _next(self, distance: int) -> Any:
        """Return the object some frames on; the last one, if there are not so many."""
        return self._frames[min(self.at + distance, len(self._frames) - 1)].obj

    def _enter(self, call: Call) -> None:
        # its vars, the field's value, and for three of them what that holds
        field, value = _key(vars(call), self._next(2)), self._next(3)
        self.at += 3 if field in ("args", "kwargs", "needed") else 2
        self._base = {
            "args": f"argument {_index(call.args, value)} of {name_of(call.fn)}",
            "kwargs": f"argument {_key(call.kwargs, value)!r} of {name_of(call.fn)}",
            "needed": f"{_key(call.needed, value)!r}, named in need",
            "fn": f"the function {name_of(call.fn)}",
        }.get(field, field)

    def _through_function(self, frame: Frame) -> None:
        fn = frame.obj
        if self._next(1) is frame.args and frame.args is not None:
            self._into_cell(fn, 3)  # (code, ..., closure), closure, cell
            return
        # (attributes, slots); one of these two; a value, or what holds it
        holder = self._next(2)
        key = _key(holder, self._next(3))
        if key == "__globals__":
            self._into_variable(fn, _key(self._next(3), self._next(4)), 4)
        elif key == "__closure__":
            self._into_cell(fn, 4)
        else:
            self._path += f".{key}" if self._path or self._variable else f" in its {key}"
            self.at += 3

    def _into_cell(self, fn: types.FunctionType, distance: int) -> None:
        index = _index(fn.__closure__ or (), self._next(distance))
        names = fn.__code__.co_freevars
        self._into_variable(fn, names[index] if index < len(names) else "", distance)

    def _into_variable(self, fn: Any, name: str, distance: int) -> None:
        self._variable, self._user, self._path = name, name_of(fn), ""
        self.at += distance

    def _through_class(self, frame: Frame) -> None:
        if self._next(1) is frame.state and frame.state is not None:
            # (members, more); one of these two; a member
            self._path += f".{_key(self._next(2), self._next(3))}"
            self.at += 3
        else:
            self.at += 1

    def _through_instance(self, frame: Frame) -> None:
        owner, part = frame.obj, self._next(1)
        if frame.args is not None and part is frame.state:
            if isinstance(part, tuple) and all(isinstance(p, (dict, type(None))) for p in part):
                self.at += 1  # (vars, slots)
                part = self._next(1)
            value = self._next(2)
            self.at += 2
            self._path += _attribute(owner, value) or (
                f".{_key(part, value)}" if isinstance(part, dict) else ""
            )
        elif frame.args is not None and type(part) is tuple and part is not owner:
            self._path += _attribute(owner, self._next(2))
            self.at += 2
        else:
            self._path += _item(owner, part)
            self.at += 1


def _attribute(owner: Any, value: Any) -> str:
    """Return the attribute that an object keeps a value in, "" if none is known."""
    names = [*getattr(owner, "__dict__", {}), "__self__", "__func__", "func", "args", "keywords"]
    for name in names:
        if getattr(owner, name, None) is value:
            return f".{name}"
    return ""


def _item(owner: Any, item: Any) -> str:
    if isinstance(owner, dict):
        key = _key(owner, item)
        return f"[{key!r}]" if key is not None else " (a key)"
    if isinstance(owner, (set, frozenset)):
        return " (an element)"
    try:
        return f"[{_index(owner, item)}]"
    except TypeError:
        return ""


def _key(mapping: Any, value: Any) -> Any:
    items = mapping.items() if isinstance(mapping, dict) else ()
    return next((key for key, held in items if held is value), None)


def _index(sequence: Any, value: Any) -> int:
    return next((index for index, held in enumerate(sequence) if held is value), 0)
