"""Samples become numbers, and numbers rows of a table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median, quantiles

from driver import Case, Entry, Measured
from measures import LEFT

__all__ = ("Results", "Row", "shown")

OURS = "rankexec forkserver"


@dataclass(frozen=True)
class Row:
    """One line of a case's table, in words and figures."""

    who: str
    mode: str
    value: str
    spread: str
    runs: str
    ratio: str
    remark: str = ""

    @property
    def cells(self) -> list[str]:
        """Return its columns; a remark stands where the figures would."""
        figures = [self.value, self.spread, self.runs, self.ratio]
        return [self.who, self.mode, *figures, self.remark]


class Results:
    """What all cases have come to."""

    def __init__(self) -> None:
        self.cases: dict[str, Measured] = {}

    def add(self, measured: Measured) -> None:
        """Take one case."""
        self.cases[measured.case.name] = measured

    def save(self, path: str) -> None:
        """Write all samples into a file; entries are known by their place in their case."""
        kept = {}
        for name, measured in self.cases.items():
            places = {entry: place for place, entry in enumerate(measured.case.entries)}
            kept[name] = {
                "samples": [
                    [places[e], kind, found] for (e, kind), found in measured.samples.items()
                ],
                "reasons": {places[entry]: text for entry, text in measured.reasons.items()},
            }
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(f"{path}.new", path)

    def load(self, path: str, cases: Iterable[Case]) -> None:
        """Take over what an earlier run has saved of these cases, in their order."""
        if not os.path.exists(path):
            return
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        for case in cases:
            if case.name in kept:
                found = Measured(case)
                for place, kind, samples in kept[case.name]["samples"]:
                    found.samples[case.entries[place], kind] = samples
                for place, text in kept[case.name]["reasons"].items():
                    found.reasons[case.entries[int(place)]] = text
                self.add(found)

    def sort(self, cases: Iterable[Case]) -> None:
        """Bring what was measured into the order of these cases."""
        names = [case.name for case in cases]
        self.cases = dict(sorted(self.cases.items(), key=lambda item: names.index(item[0])))

    def value(self, case: str, who: str, mode: str = "", name: str = "") -> float | None:
        """Return the median of one entry, by its label or name; None if there is none."""
        measured = self.cases.get(case)
        for (entry, kind), samples in measured.samples.items() if measured else ():
            if (entry.label or entry.name, entry.mode, kind) == (who, mode, name):
                return median(samples)
        return None

    def rows(self, case: str) -> list[Row]:
        """Return a case's table."""
        measured = self.cases[case]
        found = []
        for entry in measured.case.entries:
            who = entry.label or entry.name
            remark = measured.reasons.get(entry, "")
            left = measured.samples.get((entry, LEFT))
            if left:
                remark = f"{remark} {max(left):.0f} rank(s) live on".strip()
            kinds = [kind for e, kind in measured.samples if e is entry and kind != LEFT]
            for kind in kinds:
                samples = measured.samples[entry, kind]
                found.append(
                    Row(
                        f"{who}, {kind}" if kind else who,
                        entry.mode,
                        f"{shown(median(samples))} {measured.case.unit}",
                        _spread(samples),
                        str(len(samples)),
                        "" if entry.beside else _ratio(measured, entry, kind),
                        remark,
                    )
                )
            if not kinds:
                found.append(Row(who, entry.mode, "-", "", "", "", remark or "not run"))
        return found


def _ratio(measured: Measured, entry: Entry, kind: str) -> str:
    """Return an entry's median by that of rankexec's forkserver in the same mode."""
    for (other, name), samples in measured.samples.items():
        ours = other.name == OURS and other.wanted == entry.wanted
        if other.label == "import rankexec":
            ours = True
        if ours and (other.mode, other.measure, name) == (entry.mode, entry.measure, kind):
            return shown(median(measured.samples[entry, kind]) / median(samples))
    return ""


def _spread(samples: Iterable[float]) -> str:
    samples = list(samples)
    if len(samples) < 2:
        return ""
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return f"{shown(low)} to {shown(high)}"


def shown(number: float) -> str:
    """Return a number with three digits that mean something."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"
