"""What the ranks run, and how ranks of launchers without contexts join a group.

Every rank imports this module by name, so nothing heavy stands at the top. As a script it is the
training program that torchrun starts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Body = Callable[..., Any]


def nothing(*_arguments: Any) -> None:
    """Do nothing: what is left is the launcher's own time."""


def all_reduce() -> float:
    """Add up one number over all ranks."""
    import torch
    import torch.distributed as dist

    one = torch.ones(1)
    dist.all_reduce(one)
    return one.item()


def look(data: Any) -> None:
    """Look at both ends of an argument: it is there, and it is right."""
    if data[0] != 1 or data[-1] != 1:
        raise ValueError("the argument arrived damaged")


def read(data: Any) -> None:
    """Read all of an array or a tensor."""
    if float(data.sum()) != len(data):
        raise ValueError("the argument arrived damaged")


def make(count: int) -> Any:
    """Return an array of `count` float64."""
    import numpy as np

    return np.ones(count)


def measure_memory(data: Any, meeting: str, count: int) -> None:
    """Read all of an array, and write down this rank's share of the memory that holds it.

    The proportional share (PSS) counts a page that four processes map as a quarter in each, so
    all `count` ranks have to hold the array at the same time.
    """
    read(data)
    meet(meeting, "read", count)
    start = data.__array_interface__["data"][0]
    note(meeting, "pss", str(_share(start, start + data.nbytes)))
    meet(meeting, "measured", count)


def _share(start: int, end: int) -> int:
    """Return the bytes of this process's share of the mappings between two addresses."""
    total = 0
    within = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            head, *rest = line.split()
            if not head.endswith(":"):
                low, high = (int(address, 16) for address in head.split("-"))
                within = low < end and high > start
            elif within and head == "Pss:":
                total += int(rest[0]) * 1024
    return total


def note(meeting: str, kind: str, text: str) -> None:
    """Leave a file in the directory where the ranks and the benchmark meet."""
    path = os.path.join(meeting, f"{os.getpid()}.{kind}")
    with open(f"{path}~", "w", encoding="ascii") as file:
        file.write(text)
    os.rename(f"{path}~", path)


def notes(meeting: str, kind: str) -> list[str]:
    """Return what was left there."""
    found = []
    for name in sorted(os.listdir(meeting)):
        if name.endswith(f".{kind}"):
            with open(os.path.join(meeting, name), encoding="ascii") as file:
                found.append(file.read())
    return found


def meet(meeting: str, kind: str, count: int, limit: float = 60.0) -> None:
    """Wait until `count` ranks have come this far."""
    note(meeting, kind, "")
    end = time.monotonic() + limit
    while len(notes(meeting, kind)) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} ranks were to meet at {kind!r}")
        time.sleep(0.001)


def be_known(meeting: str) -> None:
    """Say who this rank is."""
    note(meeting, "pid", str(os.getpid()))


def be_killed(meeting: str) -> None:
    """Rank 1 gets SIGKILL while its peers wait for it in a collective."""
    if os.environ["RANK"] == "1":
        time.sleep(0.3)
        note(meeting, "killed", repr(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce()


def be_stuck(meeting: str) -> None:
    """Rank 0 waits in a collective to which its peers never come."""
    note(meeting, "stuck", str(os.getpid()))
    if os.environ["RANK"] != "0":
        time.sleep(3600)
    all_reduce()


def train(steps: int) -> float:
    """Train a small model with DistributedDataParallel; return this rank's steps per second."""
    import torch
    import torch.distributed as dist
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(64, 256), torch.randint(10, (64,))
    began = 0.0
    for step in range(-steps // 10, steps):
        if step == 0:
            dist.barrier()
            began = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return steps / (time.perf_counter() - began)


# --- for launchers whose users make the group themselves ---


def in_group(fn: Body, *arguments: Any) -> Any:
    """Run `fn` in a default group; its place is in the environment, for torch's `env://`."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        return fn(*arguments)
    finally:
        dist.destroy_process_group()


def as_rank(rank: int, size: int, port: int, ddp: bool, fn: Body, arguments: Any) -> Any:
    """Take a place, as the functions that `torch.multiprocessing.spawn` starts do."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return in_group(fn, *arguments) if ddp else fn(*arguments)


def as_mpify_rank(results: Any, rank: int, *place_and_call: Any) -> Any:
    """Be a rank of mpify: it imports torch, and leaves the result in a manager's list."""
    import torch  # noqa: F401  # mpify's module does

    result = as_rank(rank, *place_and_call)
    if results is not None:
        results[rank] = result
    return result


if __name__ == "__main__":
    # DDP would import it inside the group, whose threads it then keeps to the end of the process,
    # where torch aborts now and then ("terminate called without an active exception").
    import torch._dynamo  # noqa: F401  # see above

    rate = in_group(train, int(sys.argv[1]))
    if os.environ["RANK"] == "0":
        print(rate)
