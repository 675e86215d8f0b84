"""What a row of the table in `notebook_objects` is, and how ranks are made to check it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Groups = Mapping[str, Sequence["Kind"]]


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    name: str
    cell: str
    check: str
    argument: str = ""
    """An expression whose value the check gets as `value`."""
    arrives: str = ""
    """What a reader may not expect; else it arrives as it is."""
    differs: bool = False
    """Whether the check is true in the caller only."""
    refused: str = ""
    """What the error says, parts of it between bars, if it does not travel."""
    needs: str = ""
    """A package."""
    in_kernel: bool = False
    """Whether only a notebook has it."""
    python: tuple[int, int] = (3, 10)

    def lacks(self, *, in_kernel: bool) -> str:
        """Return what is not there that it needs; "" if nothing."""
        if self.in_kernel and not in_kernel:
            return "a kernel"
        if sys.version_info < self.python:
            return f"Python {'.'.join(map(str, self.python))}"
        return self.needs if self.needs and not importlib.util.find_spec(self.needs) else ""

    def calls(self) -> str:
        """Return the source that has ranks check it, and notes what came of it in `found`."""
        check = f"lambda value: {self.check}" if self.argument else f"lambda: {self.check}"
        return f"found[{self.name!r}] = report(executor, {check}, {self.argument})"


def begin(start_method: str) -> str:
    """Return the source that comes before the kinds."""
    return f"""\
from notebook_kinds import report, show
from rankexec import LocalLauncher, RankedExecutor
launcher = LocalLauncher(start_method={start_method!r})
executor = RankedExecutor(2, gather=True, output="caller", launcher=launcher)
found = {{}}
"""


END = """\
executor.shutdown()
show(found)
"""


def cells(groups: Groups, start_method: str, *, in_kernel: bool) -> list[str]:
    """Return the source of a program that checks all kinds, cell by cell."""
    kinds = [k for kinds in groups.values() for k in kinds if not k.lacks(in_kernel=in_kernel)]
    checks = [source for kind in kinds for source in (kind.cell, kind.calls())]
    return [begin(start_method), *checks, END]


def report(executor: Any, check: Any, *args: Any) -> Any:
    """Return what the check gave on both ranks, rank 0 being the caller, or the error's text."""
    try:
        return executor.submit(check, *args).result()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(json.dumps(found))


def table(groups: Groups) -> str:
    """Return the table as docs/shipping.md shows it."""
    lines = []
    for group, kinds in groups.items():
        lines += [f"### {group}", "", "| defined in a cell | in a rank |", "|---|---|"]
        lines += [f"| {kind.name} | {_arrives(kind)} |" for kind in kinds]
        lines.append("")
    return "\n".join(lines)


def _arrives(kind: Kind) -> str:
    if kind.refused:
        return f"refused: {kind.arrives}"
    return kind.arrives or "as it is"
