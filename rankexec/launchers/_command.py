"""How the library's own processes are started: with the caller's interpreter and its sys.path."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ("command_for",)

_BOOT = (
    "import sys; sys.path[:] = sys.argv[-1].splitlines(); "
    "from {module} import {main} as main; main(*map(int, sys.argv[1:-1]))"
)


def command_for(module: str, main: str = "main") -> list[str]:
    """Return a command that runs a module's `main`; integers go before the last item, sys.path.

    Raises RuntimeError in an application that is frozen: it would start itself, again and again.
    """
    from multiprocess import spawn, util

    with suppress(OSError):  # the directory is gone: nothing can be imported from there
        here = ""
        here = os.getcwd()
    path = "\n".join(os.path.join(here, p) if p else here for p in sys.path if isinstance(p, str))
    python = os.fsdecode(spawn.get_executable())
    if getattr(sys, "frozen", False) and python == sys.executable:
        raise RuntimeError(
            f"ranks need a Python, and this application is frozen: {python} is the application "
            f"itself; name one that has rankexec: multiprocess.set_executable('/path/to/python')"
        )
    return [
        python,
        *util._args_from_interpreter_flags(),
        "-c",
        _BOOT.format(module=module, main=main),
        path,
    ]
