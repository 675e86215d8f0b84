"""SIGINT at a chosen moment of a call: after an instruction at which CPython looks for signals."""

from __future__ import annotations

import dis
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(__file__)
_LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "PRECALL", "WITH_EXCEPT_START")
"""Instructions after which signals are looked for; in 3.10 a function's start is none."""


class Interrupting:
    """Runs a function and interrupts it once.

    Args:
        moment: which one, from 0 on.

    Attributes:
        reached: whether the function took as long.
    """

    def __init__(self, moment: int) -> None:
        self.reached = False
        self._left = moment
        self._last: dict[types.FrameType, str] = {}

    def run(self, function: Callable[[], Any]) -> Any:
        """Run it. Raises what it raises: KeyboardInterrupt, if nothing held that back."""
        before = sys.gettrace()
        # Python 3.12 looks at this when a trace function is set, and not again.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._on_event)
        try:
            return function()
        finally:
            sys.settrace(before)
            self._last.clear()

    def _on_event(self, frame: types.FrameType, event: str, _argument: object) -> Any:
        if os.path.dirname(frame.f_code.co_filename) == _HERE:  # the tests' own
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "return":
            self._last.pop(frame, None)
        if event != "opcode" or self.reached:
            return self._on_event
        before = self._last.get(frame, "")
        self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if before.startswith(_LOOKS):
            self._left -= 1
            if self._left < 0:
                self.reached = True
                signal.raise_signal(signal.SIGINT)
        return self._on_event
