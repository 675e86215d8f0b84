"""Measure every launcher side by side; print the tables, and write them into a page.

    python run.py [--quick] [--rounds N] [--only CASE]... [--who TEXT]... [--page PATH]
                  [--keep FILE] [--list]

A full run writes docs/benchmarks.md; with --quick, --only or --who nothing is written unless
--page says where. With --keep, what was measured is kept in a file, and a later run with that file
measures only what is missing in it, or what --only names; a run takes more than an hour.

The modules, from the top down: `page` (tables), `reach` (goals), `results` (numbers), `cases` (who
and what), `driver` (processes that take turns); in those processes `host`, `measures` (what is
timed), `contestants` (each launcher), `floor`, `cells`, `yardstick`, and `bodies` (what ranks run).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from cases import CASES
from driver import HERE, measure, only_with
from page import describe_machine, print_case, print_findings, write_page
from reach import check
from results import Results

PAGE = os.path.join(HERE, "..", "..", "docs", "benchmarks.md")


def main() -> None:
    """Run what the command line asks for."""
    options = _parse()
    part = bool(options.quick or options.only or options.who)
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    if options.who:
        chosen = [only_with(case, options.who) for case in chosen]
    if options.list:
        for case in CASES:
            print(f"{case.name:18} {case.title}")
        return
    machine = describe_machine()
    print(machine, flush=True)
    results = Results()
    if options.keep:
        results.load(options.keep, CASES)
        if not options.only:
            chosen = [case for case in chosen if case.name not in results.cases]
    began = time.monotonic()
    log_path = os.path.join(tempfile.gettempdir(), "rankexec-benchmarks.log")
    with open(log_path, "wb") as log:
        for case in chosen:
            results.add(measure(case, log, most=3 if options.quick else options.rounds))
            print_case(results, case.name)
            if options.keep:
                results.save(options.keep)
    results.cases = {
        case.name: results.cases[case.name] for case in CASES if case.name in results.cases
    }
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    machine += f"; at the end, {(time.monotonic() - began) / 60:.0f} minutes later: {load}"
    findings = check(results)
    if part:
        findings = [finding for finding in findings if finding.met is not None]
    print_findings(findings)
    print(f"\nEvery sample, and what the contestants printed, is in {log_path}")
    page = options.page or (None if part else PAGE)
    if page:
        write_page(page, machine, results, findings)
        print(f"Written: {os.path.normpath(page)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    names = [case.name for case in CASES]
    parser.add_argument("--quick", action="store_true", help="three rounds of each case")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds of each case")
    parser.add_argument("--only", action="append", choices=names, metavar="CASE", help="one case")
    parser.add_argument("--who", action="append", help="contestants with this in their name")
    parser.add_argument("--page", help="where to write the tables")
    parser.add_argument("--keep", metavar="FILE", help="add to what is kept there, and keep all")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
