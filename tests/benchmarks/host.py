"""The process of one contestant: it alone is loaded here, and answers one request at a time.

    python host.py NAME MODE

Requests come on stdin, answers go to stdout, each a line of JSON. Started and ended by `driver`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys

# `__main__` is imported again by every child of a contestant that spawns: nothing else stands here.


def main(name: str, mode: str) -> None:
    """Answer requests until there are no more."""
    import measures
    from contestants import CONTESTANTS

    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with open(os.devnull, "r+b") as nothing:  # what launchers and ranks print is not ours to read
        os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
    faulthandler.enable()
    # A shell has its jobs in the background ignore it, and Python leaves that as it is.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    contestant = None
    opened = False
    for line in requests:
        measure, wanted = json.loads(line)
        try:
            if contestant is None:
                contestant = CONTESTANTS[name](mode)
            if measure not in ("first", "load"):
                opened = opened or contestant.open() is None
            answer = {} if measure == "load" else getattr(measures, measure)(contestant, **wanted)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0]
        answers.write(json.dumps(answer) + "\n")
    if contestant is not None:
        contestant.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
