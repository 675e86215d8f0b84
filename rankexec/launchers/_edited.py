"""Modules that their user edits: what the guardian has imported of them must not grow old in ranks.

Preloaded modules that are installed stay as they are, like in any running program.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig

__all__ = ("forget_edited", "note_modules")

_Version = tuple[int, int]
"""Modification time and size, as Python's own cache of compiled modules compares them."""

_noted: dict[str, tuple[str, _Version | None]] = {}
"""By module name, its file and what that was."""


def note_modules() -> None:
    """Note (in the guardian) the files of the modules that are here and not installed."""
    installed = {
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
    prefixes = tuple(os.path.join(path, "") for path in installed)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        ours = name.partition(".")[0] == __name__.partition(".")[0]
        if isinstance(path, str) and not ours and not path.startswith(prefixes):
            _noted[name] = path, _version(path)


def forget_edited() -> None:
    """Let this process (a fork of the guardian) import those modules again if one has changed.

    All of them: they may hold what they have imported from each other.
    """
    importlib.invalidate_caches()
    if any(_version(path) != version for path, version in _noted.values()):
        for name in _noted:
            sys.modules.pop(name, None)


def _version(path: str) -> _Version | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
