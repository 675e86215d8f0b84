"""What is measured: every case, and who takes part in it."""

from __future__ import annotations

from typing import Any

from cells import GANGS
from driver import Case, Entry

__all__ = ("CASES",)

OURS = "rankexec forkserver"
CALLER, CHILDREN = "caller", "children"
FRESH_RANKS = (
    (OURS, CALLER),
    (OURS, CHILDREN),
    ("rankexec standby", CALLER),
    ("rankexec standby", CHILDREN),
    ("rankexec spawn", CALLER),
    ("the floor", CALLER),
    ("the floor", CHILDREN),
    ("multiprocess spawn (mpify)", CALLER),
    ("torch.multiprocessing.spawn", CHILDREN),
    ("accelerate notebook_launcher", CHILDREN),
    ("torchrunx", CHILDREN),
)
LOKY = ("loky reusable executor", CHILDREN)
WITH_ARGUMENTS = tuple(who for who in FRESH_RANKS if who[0] != "the floor")
ARRAY = 25_000_000
"""float64: 200 MB"""


def _entries(who: tuple[tuple[str, str], ...], measure: str, **wanted: Any) -> tuple[Entry, ...]:
    return tuple(Entry(name, mode, measure, wanted) for name, mode in who)


def _yardstick(label: str, measure: str, **wanted: Any) -> Entry:
    return Entry("yardstick", "", measure, wanted, label, beside=True)


def _empty(size: int) -> tuple[Entry, ...]:
    return tuple(
        Entry(OURS, mode, "gang", {"size": size}, f"an empty gang of {size}", beside=True)
        for mode in (CALLER, CHILDREN)
    )


def _gangs() -> list[Case]:
    found = []
    for size in (2, 4, 8):
        entries = _entries((*FRESH_RANKS, LOKY), "gang", size=size)
        found.append(Case(f"empty{size}", f"Empty gang of {size}", entries))
    for size in (2, 4, 8):
        entries = _entries(FRESH_RANKS, "gang", size=size, ddp=True, body="all_reduce")
        title = f"DDP gang of {size}: init, one all_reduce, destroy"
        found.append(Case(f"ddp{size}", title, entries))
    return found


def _arguments() -> list[Case]:
    found = []
    write = _yardstick("one write() of it into a memfd", "write_once")
    load = _yardstick("one C-pickle dump and four loads", "dump_and_load", loads=4)
    for name, what, body, beside in (
        ("numpy", "a 200 MB numpy argument", "look", write),
        ("tensor", "a 200 MB tensor argument", "look", write),
        ("numpy", "a 200 MB numpy argument that every rank reads", "read", write),
        ("ints", "a list of a million ints", "look", load),
    ):
        who = (*WITH_ARGUMENTS, LOKY)
        entries = _entries(who, "gang", size=4, take=name, body=body)
        case = name if body == "look" else f"{name}_{body}"
        title = f"Gang of 4 with {what}"
        found.append(Case(case, title, (*entries, beside, *_empty(4)), rounds=15))
    return found


def _memory() -> Case:
    entries = tuple(
        Entry(name, mode, "memory", {"size": 4, "children": 4})
        for name, mode in (*WITH_ARGUMENTS, LOKY)
        if mode == CHILDREN
    )
    title = "Memory of a 200 MB numpy argument in 4 children (PSS), read by each"
    return Case("memory", title, entries, "MB", rounds=3)


def _results() -> Case:
    entries = _entries((*WITH_ARGUMENTS, LOKY), "results", size=2, count=ARRAY)
    what = "making them and two memfd writes, one after another"
    beside = _yardstick(what, "make_and_write", count=ARRAY, times=2)
    title = "200 MB results (numpy) from each of 2 ranks"
    return Case("results", title, (*entries, beside, *_empty(2)), rounds=15)


def _first() -> list[Case]:
    found = []
    for kind, ddp in (("empty", False), ("DDP", True)):
        for pause, who in ((0.0, FRESH_RANKS), (2.0, ((OURS, CALLER), (OURS, CHILDREN)))):
            entries = _entries(who, "first", size=2, pause=pause, ddp=ddp)
            when = "2 s after the executor was made" if pause else "at once"
            title = f"First {kind} gang of a process (2 ranks), {when}"
            name = f"first_{kind.lower()}{'_later' if pause else ''}"
            found.append(Case(name, title, entries, rounds=7, fresh=True))
    return found


def _second() -> list[Case]:
    found = []
    for kind, ddp in (("empty", False), ("DDP", True)):
        entries = _entries(((OURS, CALLER), (OURS, CHILDREN)), "second", size=2, ddp=ddp)
        title = f"Second {kind} gang of a process (2 ranks), right after the first"
        found.append(Case(f"second_{kind.lower()}", title, entries, rounds=7, fresh=True))
    return found


def _rows() -> list[Case]:
    who = tuple(who for who in FRESH_RANKS if who[0] in (OURS, "rankexec standby", "the floor"))
    found = []
    for kind, body, ddp in (("empty", "nothing", False), ("DDP", "all_reduce", True)):
        wanted = {"size": 2, "gangs": 100, "ddp": ddp, "body": body}
        title = f"100 {kind} gangs of 2 in a row"
        name = f"row_{kind.lower()}"
        times = _entries(who, "row_times", **wanted)
        found.append(Case(name, f"{title}: time of one", times, rounds=3, fresh=True))
        sizes = _entries(who, "row_memory", **wanted)
        title = f"{title}: memory of the caller and its helpers (PSS)"
        found.append(Case(f"{name}_memory", title, sizes, "MB", rounds=3, fresh=True))
    return found


def _many() -> list[Case]:
    found = []
    for kind, body, ddp in (("empty", "nothing", False), ("DDP", "all_reduce", True)):
        entries = tuple(
            Entry(
                name,
                CHILDREN,
                "gang",
                {"size": size, "per_rank": True, "body": body, "ddp": ddp},
                f"{name}, {size} ranks",
            )
            for size in (8, 64)
            for name in (OURS, "rankexec standby", "the floor")
        )
        title = f"Time per rank of an {kind} gang" if kind == "empty" else f"The same, {kind} gang"
        found.append(Case(f"ranks64_{kind.lower()}", title, entries, rounds=15))
    return found


def _ends() -> list[Case]:
    who = tuple(who for who in FRESH_RANKS if who[0] != "the floor")
    killed = _entries(who, "killed", size=3)
    # With `caller_rank=None` Ctrl-C only ends the wait for a future; its gang runs on.
    blocking = [w for w in who if not (w[0].startswith("rankexec") and w[1] == CHILDREN)]
    interrupted = _entries(tuple(blocking), "interrupted", size=2)
    return [
        Case(
            "killed",
            "From SIGKILL of rank 1 to the exception, its two peers in a collective",
            killed,
            rounds=9,
            fresh=True,
            limit=30,
        ),
        Case(
            "interrupted",
            "From SIGINT to KeyboardInterrupt, rank 0 in a collective its peer never joins",
            interrupted,
            rounds=9,
            fresh=True,
            limit=30,
        ),
    ]


def _steps() -> Case:
    who = ((OURS, CALLER), (OURS, CHILDREN), ("rankexec spawn", CALLER), ("torchrun", CHILDREN))
    title = "Training steps per second, a small MLP with DDP on 2 ranks (gloo)"
    return Case("steps", title, _entries(who, "steps", size=2, count=400), "1/s", rounds=15)


def _cells() -> Case:
    entries = tuple(
        Entry("notebook", mode, "cell", {"variables": variables}, f"{variables} variables")
        for variables in (0, 10_000)
        for mode in GANGS
    )
    title = "A notebook's cell `x = 1`: plain, and with %%ranked on 2 ranks"
    return Case("cells", title, entries)


_DYNAMO = "torch._dynamo"
"""What the first DistributedDataParallel of a process imports, and the guardian does ahead."""


def _imports() -> Case:
    modules = ("rankexec", "loky", "multiprocess", "accelerate", "torchrunx", "torch", _DYNAMO)
    entries = tuple(
        Entry("yardstick", "", "imports", {"module": name}, f"import {name}") for name in modules
    )
    return Case("import", "Import in a fresh interpreter", entries, rounds=11)


CASES: tuple[Case, ...] = (
    *_gangs(),
    *_arguments(),
    _memory(),
    _results(),
    *_first(),
    *_second(),
    *_rows(),
    *_many(),
    *_ends(),
    _steps(),
    _cells(),
    _imports(),
)
