"""What was to be reached, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from results import OURS, Results, shown

__all__ = ("Finding", "check")

STANDBY = "rankexec standby"
FLOOR = "the floor"
MPIFY = "multiprocess spawn (mpify)"
SPAWN = "torch.multiprocessing.spawn"
LOKY = "loky reusable executor"
WRITE = "one write() of it into a memfd"
LOADS = "one C-pickle dump and four loads"
MAKING = "making them and two memfd writes, one after another"
MODES = ("caller", "children")
SPAWNERS = ((MPIFY, "caller"), (SPAWN, "children"))


@dataclass(frozen=True)
class Finding:
    """One line of the table of goals; `met` is None where something was not measured."""

    what: str
    goal: str
    reached: str
    met: bool | None


def check(results: Results) -> list[Finding]:
    """Return all findings."""
    return [finding for part in PARTS for finding in part(results)]


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under


def _most(what: str, number: float | None, limit: float, unit: str = "x") -> Finding:
    met = None if number is None else number <= limit
    reached = "not measured" if number is None else f"{shown(number)}{unit}"
    return Finding(what, f"at most {limit:g}{unit}", reached, met)


def _least(what: str, number: float | None, limit: float, unit: str = "x") -> Finding:
    met = None if number is None else number >= limit
    reached = "not measured" if number is None else f"{shown(number)}{unit}"
    return Finding(what, f"at least {limit:g}{unit}", reached, met)


def _fewest(*numbers: float | None) -> float | None:
    return min((number for number in numbers if number is not None), default=None)


def _empty(results: Results) -> Iterator[Finding]:
    own = {mode: results.value("empty2", OURS, mode) for mode in MODES}
    peer = results.value("empty2", MPIFY, "caller")
    what = "empty gang of 2: faster than multiprocess spawn with torch"
    yield _least(what, _ratio(peer, own["caller"]), 40)
    for mode in MODES:
        floor = results.value("empty2", FLOOR, mode)
        yield _most(f"empty gang of 2 ({mode}): of the floor", _ratio(own[mode], floor), 1.5)
    for mode in MODES:
        parked = results.value("empty2", STANDBY, mode)
        ratio = _ratio(parked, results.value("empty2", LOKY, "children"))
        reached = "not measured"
        met = None
        if parked is not None and ratio is not None:
            reached, met = f"{shown(ratio)}x, {shown(parked)} ms", ratio <= 4 or parked < 6
        what = f"empty gang of 2 with standby ({mode}): of loky's reused workers"
        yield Finding(what, "at most 4x, or under 6 ms", reached, met)


def _ddp(results: Results) -> Iterator[Finding]:
    for size in (2, 4, 8):
        case = f"ddp{size}"
        for peer, mode in SPAWNERS:
            ours, parked = (results.value(case, who, mode) for who in (OURS, STANDBY))
            ratio = _ratio(results.value(case, peer, mode), _fewest(ours, parked))
            yield _least(f"DDP gang of {size}: faster than {peer}", ratio, 30)
        for mode in MODES:
            ratio = _ratio(results.value(case, OURS, mode), results.value(case, FLOOR, mode))
            yield _most(f"DDP gang of {size} ({mode}): of the floor", ratio, 1.2)


def _first(results: Results) -> Iterator[Finding]:
    for kind in ("empty", "ddp"):
        for peer, mode in SPAWNERS:
            theirs = results.value(f"first_{kind}", peer, mode)
            ratio = _ratio(results.value(f"first_{kind}", OURS, mode), theirs)
            yield _most(f"first gang of a process ({kind}, at once): of {peer}", ratio, 1)
        for mode in MODES:
            later = results.value(f"first_{kind}_later", OURS, mode)
            ratio = _ratio(later, results.value(f"{kind}2", OURS, mode))
            yield _most(f"first gang ({kind}, {mode}) after 2 s: of a warm one", ratio, 1.5)


def _payloads(results: Results) -> Iterator[Finding]:
    for case, what, beside, size, limit in (
        ("numpy", "200 MB numpy argument to 4 ranks: of a write and an empty gang", WRITE, 4, 1.3),
        ("tensor", "200 MB tensor argument to 4 ranks: the same", WRITE, 4, 1.3),
        ("ints", "a million ints to 4 ranks: of dump, loads and an empty gang", LOADS, 4, 2),
        ("results", "200 MB from 2 ranks: of making, writing and an empty gang", MAKING, 2, 1.2),
    ):
        for mode in MODES:
            work = results.value(case, beside)
            empty = results.value(case, f"an empty gang of {size}", mode)
            both = None if work is None or empty is None else work + empty
            yield _most(f"{what} ({mode})", _ratio(results.value(case, OURS, mode), both), limit)
    size_of_one = _ratio(results.value("memory", OURS, "children"), 200)
    yield _most("memory of that argument in 4 ranks: of one copy", size_of_one, 1.1)


def _ends(results: Results) -> Iterator[Finding]:
    for mode in MODES:
        taken = results.value("killed", OURS, mode)
        yield _most(f"dead rank to exception ({mode})", taken, 50, " ms")
    taken = results.value("interrupted", OURS, "caller")
    yield _most("Ctrl-C in a collective to KeyboardInterrupt", taken, 300, " ms")


def _others(results: Results) -> Iterator[Finding]:
    torchrun = results.value("steps", "torchrun", "children")
    for mode in MODES:
        ratio = _ratio(results.value("steps", OURS, mode), torchrun)
        yield _least(f"DDP steps per second ({mode}): of torchrun's", ratio, 0.98)
    for kind in ("empty", "ddp"):
        many, few = (
            results.value(f"ranks64_{kind}", f"{OURS}, {size} ranks", "children")
            for size in (64, 8)
        )
        yield _most(f"64 ranks ({kind}): time per rank, of that with 8", _ratio(many, few), 1)
    yield _most("import rankexec", results.value("import", "import rankexec"), 60, " ms")


def _cells(results: Results) -> Iterator[Finding]:
    few, many = "0 variables", "10000 variables"
    for mode, limit in (("gang", 50), ("gang, standby", 50), ("session", 5), ("session, DDP", 5)):
        plain, ranked = (results.value("cells", few, m) for m in ("plain", mode))
        more = None if plain is None or ranked is None else ranked - plain
        yield _most(f"%%ranked cell ({mode}): more than the cell itself", more, limit, " ms")
    for mode in ("gang", "gang, standby", "session", "session, DDP"):
        ratio = _ratio(*(results.value("cells", who, mode) for who in (many, few)))
        yield _most(f"%%ranked cell ({mode}) with 10,000 variables: of that with none", ratio, 1.2)


PARTS: tuple[Callable[[Results], Iterator[Finding]], ...] = (
    _empty,
    _ddp,
    _first,
    _payloads,
    _ends,
    _cells,
    _others,
)
