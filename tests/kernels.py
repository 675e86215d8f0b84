"""How the programs that drive Jupyter kernels start them."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

from jupyter_client.manager import KernelManager

PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


def _free_ports() -> Iterator[int]:
    """Yield ports that no other program is given by chance before the kernel listens on them.

    Those that jupyter_client finds are of the range from which every socket gets one.
    """
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # it is taken
                continue
        yield port


def start_kernel(timeout: float) -> tuple[KernelManager, Any]:
    """Start a kernel of this Python; return its manager and a client, when it answers."""
    manager = KernelManager(kernel_name="python3", cache_ports=False)
    for name, port in zip(PORTS, _free_ports(), strict=False):
        setattr(manager, name, port)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=timeout)
    return manager, client
