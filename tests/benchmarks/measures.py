"""What is measured, inside a contestant's own process.

A measure takes a contestant and what the case wants, and returns numbers by name; the name is ""
where there is only one. Times are in milliseconds, memory in MB (10^6 bytes). What cannot be
measured is an exception, whose text ends up in the table.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from statistics import median
from typing import Any

import bodies
import psutil

MEGABYTE = 1_000_000
LEFT = "ranks that live on"
SETTLE_SECONDS = 30.0
"""How long the last gang's ranks may take to end; a bound, not a wait."""
Numbers = dict[str, float]


@lru_cache(maxsize=1)
def argument(kind: str) -> Any:
    """Return an argument of a call: 200 MB, or a million ints; made once, and in memory."""
    if kind == "numpy":
        return bodies.make(25_000_000)
    if kind == "tensor":
        import torch

        return torch.ones(50_000_000, dtype=torch.float32)
    return [1, *range(1_000_000, 1_999_998), 1]


def _gang(it: Any, body: str, *arguments: Any, size: int = 2, ddp: bool = False) -> Any:
    return it.gang(size, getattr(bodies, body), *arguments, ddp=ddp, gather=False)


def gang(
    it: Any, *, body: str = "nothing", take: str = "", per_rank: bool = False, **place: Any
) -> Numbers:
    """Time one call of the launcher, from before it to its result."""
    arguments = (argument(take),) if take else ()
    began = time.perf_counter()
    _gang(it, body, *arguments, **place)
    taken = time.perf_counter() - began
    return {"": taken * 1000 / (place.get("size", 2) if per_rank else 1)}


def results(it: Any, *, size: int, count: int) -> Numbers:
    """Time a gang whose every rank returns an array."""
    began = time.perf_counter()
    values = it.gang(size, bodies.make, count, ddp=False, gather=True)
    taken = time.perf_counter() - began
    for value in values:
        bodies.look(value)
    return {"": taken * 1000}


def first(it: Any, *, pause: float, **place: Any) -> Numbers:
    """Time the first gang of a process; after a pause, without what was done during the pause."""
    began = time.perf_counter()
    it.open()
    if pause:
        time.sleep(pause)
        began = time.perf_counter()
    _gang(it, "all_reduce" if place.get("ddp") else "nothing", **place)
    return {"": (time.perf_counter() - began) * 1000}


def second(it: Any, **place: Any) -> Numbers:
    """Time the second gang of a process, right after the first."""
    it.open()
    body = "all_reduce" if place.get("ddp") else "nothing"
    _gang(it, body, **place)
    began = time.perf_counter()
    _gang(it, body, **place)
    return {"": (time.perf_counter() - began) * 1000}


def memory(it: Any, *, size: int, children: int) -> Numbers:
    """Return what the ranks' copies of an array take together, on top of the caller's own."""
    with tempfile.TemporaryDirectory() as meeting:
        _gang(it, "measure_memory", argument("numpy"), meeting, children, size=size)
        return {"": sum(map(int, bodies.notes(meeting, "pss"))) / MEGABYTE}


def row_times(it: Any, *, gangs: int, **place: Any) -> Numbers:
    """Return the median time of the first and of the last fifth of many gangs in a row."""
    taken = [gang(it, **place)[""] for _ in range(gangs)]
    fifth = gangs // 5
    return {
        f"gangs 1 to {fifth}": median(taken[:fifth]),
        f"gangs {gangs - fifth + 1} to {gangs}": median(taken[-fifth:]),
    }


def row_memory(it: Any, *, gangs: int, **place: Any) -> Numbers:
    """Return the memory (PSS) of the caller and its helpers after a few, and after many gangs."""
    found = {}
    for done in range(1, gangs + 1):
        gang(it, **place)
        if done in (gangs // 5, gangs):
            with tempfile.TemporaryDirectory() as meeting:
                _gang(it, "be_known", meeting, size=place["size"])
                ranks = [int(pid) for pid in bodies.notes(meeting, "pid")]
            size = sum(process.memory_full_info().pss for process in _helpers(ranks))
            found[f"after {done} gangs"] = size / MEGABYTE
    return found


def _helpers(ranks: list[int]) -> list[psutil.Process]:
    """Return this process and its helpers, when those ranks have ended.

    And when two looks find the same: children for the next gang may just be forked ahead.
    """
    here = psutil.Process()
    limit = time.monotonic() + SETTLE_SECONDS
    before: list[psutil.Process] = []
    while time.monotonic() < limit:
        # The floor's server reaps its dead when it starts the next ones.
        found = here.children(recursive=True)
        family = [here, *(p for p in found if p.status() != psutil.STATUS_ZOMBIE)]
        if family == before and not any(process.pid in ranks for process in family[1:]):
            return family
        before = family
        time.sleep(0.05)
    raise RuntimeError(f"ranks of the last gang live on after {SETTLE_SECONDS:.0f} s")


def killed(it: Any, *, size: int) -> Numbers:
    """Time from the SIGKILL of a rank, whose peers wait for it, to the exception."""
    _warm_up(it, size)
    with tempfile.TemporaryDirectory() as meeting:
        try:
            _gang(it, "be_killed", meeting, size=size, ddp=True)
        except (Exception, SystemExit):
            raised = time.monotonic()
            (when,) = bodies.notes(meeting, "killed")
            return {"": (raised - float(when)) * 1000}
    raise RuntimeError("the call returned as if nothing had happened")


def interrupted(it: Any, *, size: int) -> Numbers:
    """Time from SIGINT to KeyboardInterrupt, and count the ranks that live a second later."""
    _warm_up(it, size)
    sent: list[float] = []
    with tempfile.TemporaryDirectory() as meeting:
        threading.Thread(target=_interrupt, args=(meeting, size, sent), daemon=True).start()
        try:
            _gang(it, "be_stuck", meeting, size=size, ddp=True)
        except KeyboardInterrupt:
            taken = (time.monotonic() - sent[0]) * 1000
        ranks = {int(pid) for pid in bodies.notes(meeting, "stuck")} - {os.getpid()}
    _, alive = psutil.wait_procs([p for p in psutil.process_iter() if p.pid in ranks], timeout=1)
    left = [rank.pid for rank in alive]
    for rank in alive:
        rank.kill()
    return {"": taken, LEFT: len(left)} if left else {"": taken}


def _interrupt(meeting: str, size: int, sent: list[float]) -> None:
    while len(bodies.notes(meeting, "stuck")) < size:
        time.sleep(0.01)
    time.sleep(0.3)  # rank 0 has said so before it calls the collective
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


def _warm_up(it: Any, size: int) -> None:
    _gang(it, "nothing", size=size)


def steps(it: Any, *, size: int, count: int) -> Numbers:
    """Return the training steps per second of rank 0."""
    return {"": it.gang(size, bodies.train, count, ddp=True, gather=False)[0]}


def cell(it: Any, *, variables: int) -> Numbers:
    """Time a cell of a notebook that has so many variables."""
    return {"": it.cell(variables) * 1000}


def write_once(it: Any) -> Numbers:
    """Time one write of the 200 MB argument into a memfd."""
    return _timed(it.write, argument("numpy"))


def dump_and_load(it: Any, *, loads: int) -> Numbers:
    """Time one dump of the million ints by the C pickler, and loads of it."""
    return _timed(it.pickle, argument("ints"), loads)


def make_and_write(it: Any, *, count: int, times: int) -> Numbers:
    """Time making arrays and writing each into a memfd, one after another."""
    return _timed(it.make_and_write, count, times)


def imports(it: Any, *, module: str) -> Numbers:
    """Return the time an `import` takes in a fresh interpreter."""
    return {"": it.import_module(module) * 1000}


def _timed(fn: Callable[..., Any], *arguments: Any) -> Numbers:
    began = time.perf_counter()
    fn(*arguments)
    return {"": (time.perf_counter() - began) * 1000}
