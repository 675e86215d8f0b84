"""os.environ: as it is, as it was without a gang, and back.

It decodes each name and value by Python code whenever it is asked, which was a third of the Python
calls of a session's call; what it was like twice is remembered.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ("base_environment", "kept_environment", "restore_environment", "set_variables")

_base: dict[str, str] | None = None
_seen: deque[tuple[Any, dict[str, str]]] = deque(maxlen=2)
"""The last ones, encoded and decoded: a gang's and the caller's take turns."""


def _now() -> dict[str, str]:
    """Return a copy of os.environ."""
    encoded = getattr(os.environ, "_data", None)  # private, and the only whole of it
    for known, decoded in list(_seen):
        if known == encoded:
            return decoded.copy()
    decoded = dict(os.environ)
    if encoded is not None:
        _seen.append((encoded.copy(), decoded))
    return decoded.copy()


def base_environment() -> dict[str, str]:
    """Return this process's environment without what a gang has put into it."""
    base = _base
    return _now() if base is None else base.copy()


@contextmanager
def kept_environment() -> Iterator[None]:
    """Put os.environ back at the end; until then it is the base."""
    global _base  # noqa: PLW0603  # the caller's turn makes it one writer at a time
    before = _base = _now()
    try:
        yield
    finally:
        restore_environment(before)
        _base = None


def restore_environment(before: Mapping[str, str]) -> None:
    """Make os.environ equal to `before`, touching only what differs."""
    for name in _now().keys() - before.keys():
        del os.environ[name]
    set_variables(before)


def set_variables(values: Mapping[str, str]) -> None:
    """Set variables in os.environ, touching only what differs."""
    for name, value in values.items() - _now().items():
        os.environ[name] = value
