"""Whether this process is a guardian that imports modules ahead: then it starts no other.

A module that starts a gang when it is imported would, imported by the guardian of that gang, start
another guardian, which imports it, and so on until the memory is full.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("check_not_preloading", "is_preloading", "preloading")

_names: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_names.clear)


@contextmanager
def preloading(name: str) -> Iterator[None]:
    """Span the import of a module, ahead of the ranks."""
    _names.append(name)
    try:
        yield
    finally:
        _names.remove(name)


def is_preloading() -> bool:
    """Return whether a module is being imported ahead."""
    return bool(_names)


def check_not_preloading() -> None:
    """Raise RuntimeError while one is."""
    if _names:
        raise RuntimeError(
            f"{_names[-1]!r} starts ranks when it is imported, and is imported ahead for these "
            f"ranks; guard that with: if __name__ == '__main__'"
        )
