"""Signal handlers as C knows them: a number for "default" and "ignored", else what is called.

`signal` looks for an enum member for each handler, and raises and catches a ValueError for each
function: a tenth of a millisecond in every call of a session.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # it has no stub
import signal
from collections.abc import Callable
from typing import Any

__all__ = ("get_handler", "is_common", "set_handler")

get_handler: Callable[[int], Any] = _signal.getsignal
"""Return a signal's handler; None if Python has not installed it."""
set_handler: Callable[[int, Any], Any] = _signal.signal
"""Set a signal's handler (in the main thread): a function, or what `get_handler` has returned, not
`signal.SIG_DFL`, which is an enum member. Returns what was there."""


def is_common(handler: Any) -> bool:
    """Return whether a handler of SIGINT is Python's, asyncio's, IPython's or ours: no user's."""
    if handler is signal.default_int_handler:
        return True
    module = getattr(getattr(handler, "func", handler), "__module__", None) or ""
    return module.split(".")[0] in {"asyncio", "IPython", "ipykernel", "rankexec"}
