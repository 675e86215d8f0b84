"""The tables, as text and as a page of the documentation, and the machine they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import psutil
from reach import Finding
from results import Results

__all__ = ("describe_machine", "print_case", "print_findings", "write_page")

PACKAGES = (
    "rankexec", "torch", "numpy", "accelerate", "torchrunx", "loky", "multiprocess", "dill",
    "cloudpickle", "psutil",
)  # fmt: skip
HEAD = ("who", "mode", "median", "quartiles", "runs", "to rankexec", "remark")
BEGIN = "<!-- What follows is written by `tox -e bench`, up to the line that says so. -->"
END = "<!-- End of what `tox -e bench` writes. -->"
PAGE = f"""# Benchmarks

`tox -e bench` measures every launcher on this machine and writes the tables of this page.

{BEGIN}
{END}
"""
METHOD = """\
Every contestant runs in a process of its own, with `OMP_NUM_THREADS=1`, and they take turns: one
sample each, in an order that changes from round to round, 0.3 s apart. What takes longer than a
second is measured in every fifth round, more than ten, in every tenth. Two samples of each
process are taken before and do not count, except where a case is about a process's first gang or
about its end: there every sample has a new process. "runs" is the number of samples; the spread is
their quartiles.

Modes: in "caller" the calling process is rank 0, as in mpify; in "children" every rank is a child,
as in the other launchers. "to rankexec" is the median by that of *rankexec forkserver* in the same
mode. *The floor* is `tests/benchmarks/floor.py`: a fork server with a held store as a bare script
that promises nothing. *loky* reuses its processes and runs tasks, not gangs: the yardstick for
latency. *accelerate* forks the caller itself. *multiprocess spawn* does what mpify's `ranch` does.
"""


def describe_machine() -> str:
    """Return the machine in a few lines: what it has, and what is installed."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"- {_cores()} cores of {_processor()}, {memory:.0f} GiB of memory",
            f"- {platform.system()} {platform.release()}, {platform.machine()}",
            f"- Python {platform.python_version()}; {versions}",
            f"- load average at the start: {load}",
        ]
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "an unnamed processor"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def print_case(results: Results, name: str) -> None:
    """Print one case's table."""
    print(f"\n{results.cases[name].case.title} [{name}]")
    _print([HEAD, *(row.cells for row in results.rows(name))])


def print_findings(findings: Iterable[Finding]) -> None:
    """Print what was to be reached, and what was."""
    print("\nWhat was to be reached")
    _print([("what", "goal", "reached", "met"), *_lines(findings)])


def _lines(findings: Iterable[Finding]) -> list[list[str]]:
    words = {True: "met", False: "NOT MET", None: "-"}
    return [[f.what, f.goal, f.reached, words[f.met]] for f in findings]


def _print(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(f"  {padded}".rstrip(), flush=True)


def write_page(path: str, machine: str, results: Results, findings: Iterable[Finding]) -> None:
    """Write the tables into the page; what stands outside the marks is left as it is."""
    parts = ["## How it is measured", METHOD, "## The machine", machine]
    parts += ["## What was to be reached", "Ratios within one run."]
    parts += [_markdown([("what", "goal", "reached", "met"), *_lines(findings)])]
    parts += ["## What was measured"]
    for name, measured in results.cases.items():
        table = _markdown([HEAD, *(row.cells for row in results.rows(name))])
        parts += [f"### {measured.case.title}", table]
    written = "\n\n".join(part.strip() for part in parts)
    page = PAGE
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            page = file.read()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, rule, *body)
    )
