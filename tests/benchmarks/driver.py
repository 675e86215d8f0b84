"""Contestants' processes seen from outside, and the rounds in which they take turns."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

import psutil

HERE = os.path.dirname(os.path.abspath(__file__))
PAUSE_SECONDS = 0.3
"""Between two samples: the last gang's ranks end, the next one's are forked ahead."""
SLOW_SECONDS, SLOW_EVERY = 1.0, 5
"""What takes longer than that is measured in every fifth round only,"""
SLOWER_SECONDS, SLOWER_EVERY = 10.0, 10
"""and what takes longer than this, in every tenth."""


class NoAnswer(Exception):
    """A contestant did not measure what was asked; the text says why."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One contestant in one case: who, how, and what it is asked."""

    name: str
    mode: str
    measure: str
    wanted: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """What the table calls it; empty: its name."""
    beside: bool = False
    """Whether it is no contestant, but something to hold them against."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is measured at once, by contestants in turns."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    unit: str = "ms"
    rounds: int = 25
    fresh: bool = False
    """Whether every sample gets a new process."""
    limit: float = 120.0
    """Seconds that a sample may take."""


def only_with(case: Case, texts: Iterable[str]) -> Case:
    """Return the case with fewer entries: those named so, and what they are held against."""
    texts = list(texts)
    chosen = [e for e in case.entries if e.beside or any(t in e.name for t in texts)]
    return replace(case, entries=tuple(chosen))


class Host:
    """A contestant's process. Its end is the end of everything it has started."""

    def __init__(self, entry: Entry, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "host.py"), entry.name, entry.mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=HERE,  # torchrunx's agents find our modules there
            env=_environment(),
            start_new_session=True,
        )

    def ask(self, measure: str, wanted: Mapping[str, Any], limit: float) -> dict[str, float]:
        """Return the answer to a request, or raise NoAnswer."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([measure, dict(wanted)]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NoAnswer("its process ended") from None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self._end(0.0)
            raise NoAnswer(f"nothing within {limit:.0f} s")
        answer = json.loads(self._process.stdout.readline() or '"its process ended"')
        if isinstance(answer, str):
            raise NoAnswer(answer)
        return answer

    def close(self) -> None:
        """Let it end; what it leaves behind is ended by force."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._end(10.0)
        self._process.stdout.close()

    def _end(self, patience: float) -> None:
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in family:  # a psutil.Process never stands for another of the same pid
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _environment() -> dict[str, str]:
    found = dict(os.environ)
    found["OMP_NUM_THREADS"] = "1"  # as torchrun sets it, for all contestants alike
    found["TORCHRUNX_LOG_DIR"] = ""  # no log files
    found.pop("PYTHONDONTWRITEBYTECODE", None)  # or every rank would compile what it imports
    return found


Samples = dict[tuple[Entry, str], list[float]]


@dataclass
class Measured:
    """What a case has come to: samples by entry and name of the number; reasons for none."""

    case: Case
    samples: Samples = field(default_factory=dict)
    reasons: dict[Entry, str] = field(default_factory=dict)

    def take(self, entry: Entry, answer: Mapping[str, float]) -> None:
        """Note one sample."""
        for name, number in answer.items():
            self.samples.setdefault((entry, name), []).append(number)


def measure(case: Case, log: IO[bytes], *, most: int | None) -> Measured:
    """Measure a case: one sample of each entry in turn, round by round, in changing order.

    `most` is a limit to the number of rounds.
    """
    measured = Measured(case)
    rounds = case.rounds if most is None else min(case.rounds, most)
    with ExitStack() as stack:
        turns: dict[Entry, Turns] = {}
        every: dict[Entry, int] = {}
        for number in range(-1, rounds):
            order = [entry for entry in case.entries if entry not in measured.reasons]
            random.Random(number).shuffle(order)
            for entry in order:
                try:
                    if number < 0:
                        turns[entry] = Turns(entry, case, log, stack)
                        every[entry] = _rounds_between(turns[entry].prepare())
                    elif number % every[entry] == 0:
                        began = time.monotonic()
                        measured.take(entry, turns[entry].sample())
                        # What came before may have waited for an import of the launcher's.
                        taken = time.monotonic() - began
                        every[entry] = min(every[entry], _rounds_between(taken))
                        time.sleep(PAUSE_SECONDS)
                except NoAnswer as reason:
                    measured.reasons[entry] = str(reason)
    return measured


def _rounds_between(seconds: float) -> int:
    if seconds < SLOW_SECONDS:
        return 1
    return SLOW_EVERY if seconds < SLOWER_SECONDS else SLOWER_EVERY


class Turns:
    """What one entry does when it is its turn."""

    def __init__(self, entry: Entry, case: Case, log: IO[bytes], stack: ExitStack) -> None:
        self._entry = entry
        self._case = case
        self._log = log
        self._host: Host | None = None
        if not case.fresh:
            self._host = Host(entry, log)
            stack.callback(self._host.close)

    def prepare(self) -> float:
        """Take the samples that do not count. Returns the seconds that the last one took."""
        if self._host is None:
            return 0.0
        self._host.ask("load", {}, self._case.limit)
        taken = 0.0
        for _ in range(2):  # standby has its ranks parked from the second one on
            if taken < 3 * SLOWER_SECONDS:
                began = time.monotonic()
                self._ask(self._host)
                taken = time.monotonic() - began
                time.sleep(PAUSE_SECONDS)
        return taken

    def sample(self) -> dict[str, float]:
        """Take one sample, in a new process if the case wants that."""
        if self._host is not None:
            return self._ask(self._host)
        host = Host(self._entry, self._log)
        try:
            host.ask("load", {}, self._case.limit)
            return self._ask(host)
        finally:
            host.close()

    def _ask(self, host: Host) -> dict[str, float]:
        who = f"{self._case.name}: {self._entry.label or self._entry.name} {self._entry.mode}"
        try:
            answer = host.ask(self._entry.measure, self._entry.wanted, self._case.limit)
        except NoAnswer as reason:
            self._note(f"{who}: {reason}")
            raise
        self._note(f"{who}: {answer}")
        return answer

    def _note(self, text: str) -> None:
        self._log.write(f"{time.strftime('%X')} {text}\n".encode())
        self._log.flush()
