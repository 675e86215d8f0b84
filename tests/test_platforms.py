"""Where Linux is missing, or parts of it: other platforms, acted out on this one."""

from __future__ import annotations

import pytest
from helpers import run_script

# What other platforms lack of the modules that rankexec uses itself. The standard library looks at
# some of it when it is imported, so that comes first.
WITHOUT = """
import concurrent.futures.thread, os, signal, socket, subprocess, tempfile
import cloudpickle, multiprocess.connection, multiprocess.reduction, multiprocess.spawn, psutil

def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""

WINDOWS = """
without(os, "fork", "memfd_create", "pidfd_open", "register_at_fork", "uname", "wait4", "WNOHANG")
without(signal, "pthread_kill", "SIGCHLD", "SIGKILL", "SIGURG", "SIGUSR1", "SIGUSR2")
without(signal, "SIGRTMIN", "SIGRTMAX")
without(socket, "AF_UNIX")

from rankexec import LocalLauncher, RankedExecutor
for make in (LocalLauncher, RankedExecutor):
    try:
        make()
    except ValueError as error:
        print(error)
"""

NO_LINUX = """
without(os, "memfd_create", "pidfd_open")

from rankexec import RankedExecutor
with RankedExecutor(2, gather=True, output="caller") as executor:
    print(executor.submit(lambda data: sum(data), bytearray(b"x" * 3_000_000)).result())
    print(repr(executor.submit(lambda: 1 / int(os.environ["RANK"])).exception()))
"""


def test_windows(tmp_path):
    """The package can be imported, and the local launcher says why it does not work there."""
    said = run_script(tmp_path, WITHOUT + WINDOWS).splitlines()
    assert len(said) == 2
    for line in said:
        assert "LocalLauncher passes descriptors over Unix sockets" in line


@pytest.mark.skipif("sys.platform != 'linux'", reason="acts it out by taking Linux's calls away")
def test_without_linux_calls(tmp_path):
    """Without memfd and pidfd gangs work, large arguments travel, and failures end them."""
    printed = run_script(tmp_path, WITHOUT + NO_LINUX)
    assert printed == "[360000000, 360000000]\nZeroDivisionError('division by zero')\n"
