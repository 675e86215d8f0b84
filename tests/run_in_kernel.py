"""Run cells in a fresh Jupyter kernel: a JSON list from stdin, its text output to stdout.

A program of its own: a client of a kernel keeps threads and sockets.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kernels import start_kernel


def show(message: dict[str, Any]) -> None:
    """Pass on what a cell prints, and errors."""
    content = message["content"]
    if message["msg_type"] == "stream":
        stream = sys.stdout if content["name"] == "stdout" else sys.stderr
        stream.write(content["text"])
    elif message["msg_type"] == "error":
        sys.stderr.write("\n".join(content["traceback"]) + "\n")


def main() -> None:
    """Run the cells one after another; an error in one does not keep the next from running."""
    manager, client = start_kernel(60.0)
    try:
        for cell in json.load(sys.stdin):
            client.execute_interactive(cell, output_hook=show, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


if __name__ == "__main__":
    main()
