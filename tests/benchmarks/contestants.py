"""Who is measured: each launcher, used the way its own documentation shows.

In mode "caller" the calling process is rank 0, as in mpify; in mode "children" every rank is a
child, as in all others. `gang` raises NotImplementedError where a launcher has no such thing, and
says why; `open` makes what a user makes once.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import bodies
from cells import Notebook
from floor import Floor
from peer import Peer
from yardstick import Yardstick

FOREVER = 24 * 3600.0
"""Seconds for which pools and parked processes are kept: a round may take minutes."""


class Rankexec:
    """The library at hand."""

    def __init__(self, mode: str, start_method: str, *, standby: bool = False) -> None:
        import torch  # noqa: F401  # as a caller who has a model

        import rankexec

        self._caller_rank = 0 if mode == "caller" else None
        self._start = partial(rankexec.LocalLauncher, start_method)
        self._options = {"standby": True, "standby_ttl": FOREVER} if standby else {}
        self._executor: Any = None

    def open(self) -> None:
        """Make the executor."""
        from rankexec import RankedExecutor

        launcher = self._start(**self._options)
        self._executor = RankedExecutor(2, caller_rank=self._caller_rank, launcher=launcher)

    def gang(
        self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool
    ) -> list[Any]:
        """Run `fn` on every rank; return what all of them, or rank 0 alone, returned."""
        from rankexec import TorchDDPCtx

        context = TorchDDPCtx(use_gpu=False) if ddp else None
        executor = self._executor.options(world_size=size, ctx=context, gather=gather)
        result = executor.submit(fn, *arguments).result()
        return result if gather else [result]

    def close(self) -> None:
        """Shut the executor down."""
        if self._executor is not None:
            self._executor.shutdown()


class Mpify(Peer):
    """`ranch` of mpify 0.x, call for call: children by multiprocess's spawn, rank 0 here."""

    def __init__(self, _mode: str) -> None:
        import multiprocess
        import torch  # noqa: F401  # as a caller who has it

        self._context = multiprocess.get_context("spawn")

    def gang(
        self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool
    ) -> list[Any]:
        """As `in_torchddp`: without `gather`, only the caller's own result."""
        results = self._context.Manager().list([None] * size) if gather else None
        call = (size, free_port(), ddp, fn, arguments)
        children = []
        try:
            for rank in range(1, size):
                target = partial(bodies.as_mpify_rank, results, rank)
                children.append(self._context.Process(target=target, args=call))
                children[-1].start()
            own = bodies.as_mpify_rank(results, 0, *call)
            for child in children:
                child.join()
            return [own] if results is None else list(results)
        finally:
            for child in children:
                child.terminate()
                child.join()


class TorchSpawn(Peer):
    """`torch.multiprocessing.spawn`."""

    def __init__(self, _mode: str) -> None:
        import torch.multiprocessing

        self._spawn = torch.multiprocessing.spawn

    def gang(self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool) -> None:
        """Returns nothing."""
        if gather:
            raise NotImplementedError("returns nothing")
        self._spawn(bodies.as_rank, args=(size, free_port(), ddp, fn, arguments), nprocs=size)


class Accelerate(Peer):
    """accelerate's `notebook_launcher`: forks the caller, which must not have touched a GPU."""

    def __init__(self, _mode: str) -> None:
        import torch  # noqa: F401  # as a caller who has it
        from accelerate import notebook_launcher

        self._launch = notebook_launcher

    def gang(self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool) -> None:
        """Returns nothing."""
        if gather:
            raise NotImplementedError("returns nothing")
        if ddp:
            fn, arguments = bodies.in_group, (fn, *arguments)
        self._launch(fn, arguments, num_processes=size, use_port=str(free_port()))


class Torchrunx(Peer):
    """torchrunx: an agent process, and its workers, for every run."""

    def __init__(self, _mode: str) -> None:
        import torchrunx

        self._launcher = torchrunx.Launcher

    def gang(
        self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool
    ) -> list[Any]:
        """Returns every rank's result, asked for or not."""
        backend = "gloo" if ddp else None
        launcher = self._launcher(hostnames=["localhost"], workers_per_host=size, backend=backend)
        results = launcher.run(fn, *arguments)
        return [results.rank(rank) for rank in range(size if gather else 1)]


class Loky(Peer):
    """loky's reusable executor: processes that are *not* fresh, the yardstick for latency."""

    def __init__(self, _mode: str) -> None:
        import loky
        import torch  # noqa: F401  # as a caller who has it

        self._get = loky.get_reusable_executor

    def gang(
        self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool
    ) -> list[Any]:
        """Run one task for each rank; which process takes it is open."""
        if ddp:
            raise NotImplementedError("tasks of a pool do not meet")
        executor = self._get(max_workers=size, timeout=FOREVER)
        results = [future.result() for future in self._submit(executor, size, fn, arguments)]
        return results if gather else results[:1]

    @staticmethod
    def _submit(executor: Any, size: int, fn: bodies.Body, arguments: Any) -> list[Any]:
        return [executor.submit(fn, *arguments) for _ in range(size)]

    def close(self) -> None:
        """End the workers."""
        self._get().shutdown(kill_workers=True)


class Torchrun(Peer):
    """`torchrun`, for the training script alone: it starts programs, not functions."""

    def __init__(self, _mode: str) -> None:
        import torch  # noqa: F401  # as a caller who has it

    def gang(
        self, size: int, fn: bodies.Body, *arguments: Any, ddp: bool, gather: bool
    ) -> list[float]:
        """Run `bodies.py` as a script and read what rank 0 prints."""
        if fn is not bodies.train or not ddp or gather:
            raise NotImplementedError("starts programs, not functions")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        command = [sys.executable, *launch, bodies.__file__, *map(str, arguments)]
        return [float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)]


def free_port() -> int:
    """Return a port that was free just now, for launchers that want to be told one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


CONTESTANTS: dict[str, Callable[[str], Any]] = {
    "rankexec forkserver": partial(Rankexec, start_method="forkserver"),
    "rankexec standby": partial(Rankexec, start_method="forkserver", standby=True),
    "rankexec spawn": partial(Rankexec, start_method="spawn"),
    "the floor": Floor,
    "multiprocess spawn (mpify)": Mpify,
    "torch.multiprocessing.spawn": TorchSpawn,
    "accelerate notebook_launcher": Accelerate,
    "torchrunx": Torchrunx,
    "loky reusable executor": Loky,
    "torchrun": Torchrun,
    "notebook": Notebook,
    "yardstick": Yardstick,
}
