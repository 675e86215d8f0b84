"""DDP gangs that are broken off at random moments, most of them in their rendezvous.

    python break_rendezvous.py WAY ... [--ranks 2] [--gangs 200] [--seed 0] [--late 1]
                               [--session] [--thread] [--groups]

A way is "kill" (of any child), "int" (Ctrl-C) or "timeout" (of the gang); of several, each gang
draws one. A gang is to be over within a second of that (--late), of two if stacks are
collected, and the next one is to work. With --session the gangs are the calls of a session that
enters its context anew for each, with --thread the caller's rank is not in the main thread, with
--groups the function makes more groups. It prints what became of the gangs, which were late or
wrong, and how long they took; the exit code is 0 if none was. One that hangs for 20 s shows its
stacks, and ends the program.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist

from rankexec import RankedExecutor, SessionLost, TorchDDPCtx

STACKS_SECONDS = 1.0
HANGS_SECONDS = 20.0
EXPECTED = {"NoneType", "RankDied", "SessionLost", "KeyboardInterrupt", "GangTimeout"}
FIRST, LAST = 0.0, 0.12
"""When a gang is broken off, in seconds from its start."""


def job(groups: bool) -> float:
    """Take part in a collective, if asked in groups made here too; then wait to be broken off."""
    value = torch.ones(1)
    dist.all_reduce(value)
    if groups:
        for _ in range(3):
            dist.all_reduce(value, group=dist.new_group(backend="gloo"))
    time.sleep(0.1)
    return value.item()


def fail() -> None:
    """Have a session leave its context, so that it is entered anew."""
    raise ValueError


class Breaker:
    """A thread that breaks a gang off after a delay, unless the gang is over by then."""

    def __init__(self, way: str, guardian: psutil.Process, rng: random.Random) -> None:
        self.delay = rng.uniform(FIRST, LAST)
        self.moment: float | None = None
        self._pick = rng.random()
        self._act = {"kill": partial(self._kill, guardian), "int": self._interrupt}.get(way)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Breaker:  # noqa: PYI034  # Self came with 3.11
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._over.wait(self._start + self.delay - time.monotonic()):
            self.moment = time.monotonic()
            if self._act is not None:
                self._act()

    def _interrupt(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def _kill(self, guardian: psutil.Process) -> None:
        while not self._over.is_set():
            if children := guardian.children():
                self.moment = time.monotonic()
                try:
                    children[int(self._pick * len(children))].kill()
                except psutil.NoSuchProcess:
                    continue
                return


class Loop:
    """The program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rng = random.Random(options.seed)
        self._became: Counter[str] = Counter()
        self._took: list[float] = []
        self._failed = 0

    def run(self) -> bool:
        """Run the gangs; return whether none was late."""
        options = self._options
        context = TorchDDPCtx(use_gpu=False)
        with RankedExecutor(options.ranks, ctx=context, output="caller") as executor:
            executor.submit(job, options.groups).result()
            self._guardian = psutil.Process().children()[0]
            # Until then it has a deputy, whose death ends all, as the guardian's own does.
            while self._guardian.children():
                time.sleep(0.05)
            runner: Any = executor.session() if options.session else executor
            for number in range(options.gangs):
                faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
                print(f"{number}\r", end="", file=sys.stderr)
                self._in_thread(partial(self._one, runner, number))
            if options.session:
                runner.close()
        faulthandler.cancel_dump_traceback_later()
        took = sorted(self._took) or [0.0]
        print(*(f"{name}: {count}" for name, count in self._became.most_common()), sep=", ")
        median, most = took[len(took) // 2], took[-1]
        print(f"{len(took)} broken off, in {median:.2f} s (median), at most {most:.2f} s")
        print("FAIL" if self._failed else "PASS", vars(options), flush=True)
        return not self._failed

    def _in_thread(self, call: Callable[[], None]) -> None:
        if not self._options.thread:
            return call()
        thread = threading.Thread(target=call)
        thread.start()
        return thread.join()

    def _one(self, runner: Any, number: int) -> None:
        options = self._options
        if options.session:
            try:
                runner.submit(fail)
            except SessionLost:
                runner.restart()
                runner.submit(fail)
        way = self._rng.choice(options.ways)
        breaker = Breaker(way, self._guardian, self._rng)
        became = "?"
        try:
            with breaker:
                limit = max(0.001, breaker.delay) if way == "timeout" else None
                future = runner.options(timeout=limit).submit(job, options.groups)
                error = future.exception()
                became = type(error).__name__
                if became not in EXPECTED:
                    self._failed += 1
                    print(f"WRONG gang {number}: {error!r}", flush=True)
        except KeyboardInterrupt:  # it may come a moment after
            became = "KeyboardInterrupt"
        except SessionLost:  # the child was killed before the call
            became = "SessionLost"
        over = time.monotonic()
        self._became[f"{way} {became}"] += 1
        if breaker.moment is None or became in ("NoneType", "?"):
            return
        took = over - breaker.moment
        self._took.append(took)
        if took > options.late + (STACKS_SECONDS if way == "timeout" else 0):
            self._failed += 1
            print(
                f"LATE gang {number}: {took:.1f} s after {breaker.delay:.4f} s, {became}",
                flush=True,
            )


def main() -> int:
    """Read the options, run the gangs, return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ways", nargs="+", choices=["kill", "int", "timeout"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--gangs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--late", type=float, default=1.0)
    for name in ("--session", "--thread", "--groups"):
        parser.add_argument(name, action="store_true")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    return 0 if Loop(parser.parse_args()).run() else 1


if __name__ == "__main__":
    sys.exit(main())
