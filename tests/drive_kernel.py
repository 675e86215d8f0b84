"""Drive a fresh Jupyter kernel as a page does: a JSON list of steps from stdin, results to stdout.

A step is a cell, or a list: a cell and "silent"; or a cell, what is done while it runs
("interrupt", "kill", "restart"), and the files that must be there first, made by ranks. A program
of its own: a client of a kernel keeps threads and sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from queue import Empty
from typing import Any

import psutil
from kernels import start_kernel

WAIT_SECONDS = 60.0


class Page:
    """A kernel, and what has come from it so far, by the cell that it came for."""

    def __init__(self) -> None:
        self.manager, self.client = start_kernel(WAIT_SECONDS)
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.order: list[str] = []
        self.late: list[str] = []

    def run(self, cell: str, action: str = "", *files: str) -> dict[str, Any]:
        """Run a cell; return its outputs, and how long it went on after the action."""
        message = self.client.execute(cell, silent=action == "silent")
        acted = 0.0
        limit = time.monotonic() + WAIT_SECONDS
        while not self._is_idle(message):
            if time.monotonic() > limit:
                raise TimeoutError(cell)
            self._read(0.05)
            if files and not acted and all(map(os.path.exists, files)):
                acted = time.monotonic()
                self._act(action)
                if action != "interrupt":
                    break
        found = self._outputs(message)
        found["seconds"] = time.monotonic() - acted
        return found

    def _act(self, action: str) -> None:
        if action == "interrupt":
            self.manager.interrupt_kernel()
            return
        below = psutil.Process(self.manager.provisioner.pid).children(recursive=True)
        if action == "kill":
            self.manager.signal_kernel(signal.SIGKILL)
        else:
            self.manager.restart_kernel(now=False)
            self.client.wait_for_ready(timeout=WAIT_SECONDS)
        gone, alive = psutil.wait_procs(below, timeout=10)
        if alive or not gone:
            raise RuntimeError(f"left by the kernel: {alive}; ended with it: {gone}")

    def _is_idle(self, message: str) -> bool:
        return any(
            m["msg_type"] == "status" and m["content"]["execution_state"] == "idle"
            for m in self.messages.get(message, [])
        )

    def _read(self, seconds: float) -> None:
        with contextlib.suppress(Empty):
            message = self.client.get_iopub_msg(timeout=seconds)
            parent = message["parent_header"].get("msg_id", "")
            if self._is_idle(parent) and message["msg_type"] != "status":
                self.late.append(message["content"].get("text", repr(message["content"])))
            self.messages.setdefault(parent, []).append(message)

    def _outputs(self, message: str) -> dict[str, Any]:
        found: dict[str, Any] = {"out": "", "err": "", "error": None, "shown": []}
        found |= {"updated": [], "widgets": {}}
        for one in self.messages.get(message, []):
            content = one["content"]
            if one["msg_type"] == "stream":
                found[content["name"][3:]] += content["text"]
            elif one["msg_type"] == "error":
                found["error"] = content["ename"]
                found["traceback"] = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
            elif one["msg_type"] in ("display_data", "execute_result"):
                found["shown"].append(content["data"])
            elif one["msg_type"] == "update_display_data":
                found["updated"].append(content["data"])
            elif one["msg_type"] in ("comm_open", "comm_msg"):  # all states of a widget, in order
                states = found["widgets"].setdefault(content["comm_id"], [])
                states.append(content["data"].get("state", {}))
        return found

    def close(self) -> None:
        """Shut the kernel down as a server does, if it lives."""
        self.client.stop_channels()
        if self.manager.is_alive():
            self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()


def main() -> None:
    """Run the steps one after another, until one kills the kernel."""
    page = Page()
    try:
        steps = [[step] if isinstance(step, str) else step for step in json.load(sys.stdin)]
        found = [page.run(*step) for step in steps]
        page._read(0.5)  # what comes late, if anything does
        print(json.dumps({"cells": found, "late": page.late}))
    finally:
        page.close()


if __name__ == "__main__":
    main()
