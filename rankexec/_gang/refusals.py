"""What belongs to its process and is refused, though some of it could be pickled; and what to do.

The other reasons are the picklers' own.
"""

from __future__ import annotations

import io
import mmap
import socket
import subprocess
import sys
import threading
import types
from concurrent.futures import Executor, Future
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from multiprocess.process import BaseProcess as DillsBaseProcess

__all__ = ("Refused", "advice", "choose")


class Refused(TypeError):
    """An object does not travel, whoever pickles it; the text says why.

    Attributes:
        advice: what to do about it, if that is not for all objects of its kind.
    """

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(why)
        self.advice = advice


def choose(cls: type) -> Any:
    """Return what refuses instances of `cls` (those that are alive or open), or None."""
    if issubclass(cls, _shell()):
        return _refuse_shell
    if issubclass(cls, io.IOBase) and cls not in (io.BytesIO, io.StringIO):
        return _file
    if issubclass(cls, (*_GENERATORS, subprocess.Popen, Future)):
        return _refuse
    if issubclass(cls, Executor) and cls.__reduce__ is object.__reduce__:  # ours says more
        return _refuse
    if issubclass(cls, _RUNNING):
        return _thread_or_process
    return None


_RUNNING = (threading.Thread, BaseProcess, DillsBaseProcess)
_GENERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


def _shell() -> Any:
    interactive = sys.modules.get("IPython.core.interactiveshell")
    return getattr(interactive, "InteractiveShell", ())


_ADVICE: tuple[tuple[Any, str], ...] = (
    (types.GeneratorType, "pass list(...) of it, or the function that makes it"),
    ((types.CoroutineType, types.AsyncGeneratorType), "pass the function that makes it"),
    (io.IOBase, "pass its path, and open it inside the function"),
    (mmap.mmap, "pass an np.memmap of its file, or its path, and map it inside the function"),
    (socket.socket, "pass its address, and connect inside the function"),
    (Future, "pass its result"),
    ((*_RUNNING, subprocess.Popen, Executor), "start it inside the function"),
)
_SHELL_ADVICE = "use get_ipython() and magics (%, !) outside of what ranks run"


def advice(obj: Any) -> str:
    """Return what to do about an object that does not travel; "" if nothing more is known."""
    if isinstance(obj, _shell()):
        return _SHELL_ADVICE
    return next((text for kinds, text in _ADVICE if isinstance(obj, kinds)), "")


def _refuse(obj: Any) -> NoReturn:
    raise Refused(f"a {type(obj).__name__} runs in its own process only")


def _refuse_shell(_: Any) -> NoReturn:
    raise Refused("it is the shell of the notebook, which ranks do not have")


def _thread_or_process(obj: Any) -> Any:
    """One that is not started yet is a plain object."""
    if obj.ident is None:
        return NotImplemented
    return _refuse(obj)


def _file(file: Any) -> Any:
    """An open file: cloudpickle ships a copy of its content and says nothing.

    The standard streams go by name: they are the rank's own. What is made in Python and has no
    descriptor is a plain object.
    """
    for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    try:
        file.fileno()
    except (OSError, AttributeError):  # UnsupportedOperation is a ValueError, too
        return NotImplemented
    except ValueError:
        raise Refused(f"it is a closed file, {getattr(file, 'name', '')!r}") from None
    raise Refused(f"it is an open file, {getattr(file, 'name', '')!r}")
