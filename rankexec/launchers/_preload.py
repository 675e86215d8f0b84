"""What the guardian imports ahead for its ranks, and what of it a rank is to import once more.

The guardian imports torch and friends once; a fork of it has them at the price of a few
milliseconds. What a fork cannot survive is refused: threads of Python, a touched CUDA. Modules that
their user edits must not grow old in ranks; installed ones stay as they are, like in any running
program.
"""

from __future__ import annotations

import gc
import importlib
import os
import site
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress

from rankexec.errors import PreloadError
from rankexec.launchers._preloading import preloading

__all__ = ("forget_edited", "preload")


def preload(names: Iterable[str]) -> None:
    """Import modules for all ranks to come.

    Raises:
        PreloadError: a module does not import, touches CUDA, or starts threads.
    """
    # Asking for CUDA would otherwise initialise its driver, which no fork survives.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Hardly any of it is garbage, and to look for that takes a fifth of the time; frozen, no rank's
    # collector writes to the shared pages, and thereby copies them.
    gc.disable()
    try:
        for name in names:
            _preload(name)
    finally:
        gc.freeze()
        gc.enable()
    # Python 3.12 warns of forks with threads; OpenBLAS's are there and stand a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    _note_modules()


def _preload(name: str) -> None:
    before = set(threading.enumerate())
    try:
        with preloading(name):
            importlib.import_module(name)
    except BaseException as error:  # a module may raise anything, SystemExit too
        raise PreloadError(name, f"importing it raised {error!r}") from error
    if started := [t.name for t in threading.enumerate() if t not in before]:
        raise PreloadError(name, f"it starts threads ({', '.join(started)}), which no fork has")
    if _touches_cuda():
        raise PreloadError(name, "it touches CUDA, which cannot be used after a fork")


def _touches_cuda() -> bool:
    """Return whether a fork of this process could not use CUDA: ask one, is_initialized lies."""
    if "torch.cuda" not in sys.modules or not _has_driver():
        return False
    pid = os.fork()
    if pid == 0:
        bad = True
        with suppress(BaseException):
            bad = sys.modules["torch.cuda"]._is_in_bad_fork()
        os._exit(int(bad))
    return os.waitpid(pid, 0)[1] != 0


def _has_driver() -> bool:
    """Return whether a GPU's driver may be loaded here, as it is by what touches CUDA, or by ROCm.

    A fork for each module, to ask it, would be a twentieth of the time until a first gang.
    """
    try:
        with open(_MAPPED, encoding="utf-8", errors="replace") as mapped:
            return any("libcuda.so" in line or "libamdhip" in line for line in mapped)
    except OSError:  # not on macOS
        return True


_MAPPED = "/proc/self/maps"


_Version = tuple[int, int]
"""Modification time and size, as Python's own cache of compiled modules compares them."""

_noted: dict[str, tuple[str, _Version | None]] = {}
"""By module name, its file and what that was."""


def _note_modules() -> None:
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
        known = ours or name in _noted
        if isinstance(path, str) and not known and not path.startswith(prefixes):
            _noted[name] = path, _version(path)


def forget_edited() -> None:
    """Let this process (a fork of the guardian) import those modules again if one has changed.

    All of them: they may hold what they have imported from each other.
    """
    if any(_version(path) != version for path, version in _noted.values()):
        importlib.invalidate_caches()  # takes a millisecond, in a fork
        for name in _noted:
            sys.modules.pop(name, None)


def _version(path: str) -> _Version | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
