"""Run a function on ranked processes together: a concurrent.futures.Executor whose task is a gang.

The map of the house, from the top down (imports run downwards only):

    mpify               mpify's functions; imported on request only
    magics              the IPython extension: %ranks, %%ranked, %autoranked; likewise
    ddip                Ddip's commands: %makedip, %%dip and so on; likewise
    _notebook           what these are made of
    executor            RankedExecutor: submit, map, options, shutdown
    _shared, _map       what several executors share; lazy iterators
    session             Session: the executor of a gang that is held open
    _gang.run           one call from preparation to result, here (caller is a rank) or apart
    _gang               one gang: its picture is in that package's docstring
    launchers           what starts children: protocols; local: this host's; _guardian: their end
    contexts, _torch    TorchDDPCtx; what it asks of torch
    _settings, _slots   checked arguments; which devices are free
    _future, errors     what a submit returns, and what may come out of it
"""

from typing import Any as _Any

from rankexec._gang.call import Died, Raised, RankInfo, Returned
from rankexec.contexts import TorchDDPCtx
from rankexec.errors import (
    GangTimeout,
    LauncherDied,
    NotShippable,
    PreloadError,
    RankDied,
    RankExecError,
    RankRaised,
    SessionLost,
)
from rankexec.executor import RankedExecutor, RankedFuture
from rankexec.launchers.local import LocalLauncher

__version__ = "0.1.0"


def load_ipython_extension(shell: _Any) -> None:
    """Add the magics to IPython: `%load_ext rankexec` calls this."""
    from rankexec import magics

    magics.load_ipython_extension(shell)


def unload_ipython_extension(shell: _Any) -> None:
    """Take the magics away and end the notebook's gang: `%unload_ext rankexec` calls this."""
    from rankexec import magics

    magics.unload_ipython_extension(shell)


__all__ = (
    "Died",
    "GangTimeout",
    "LauncherDied",
    "LocalLauncher",
    "NotShippable",
    "PreloadError",
    "Raised",
    "RankDied",
    "RankExecError",
    "RankInfo",
    "RankRaised",
    "RankedExecutor",
    "RankedFuture",
    "Returned",
    "SessionLost",
    "TorchDDPCtx",
    "load_ipython_extension",
    "unload_ipython_extension",
)
