"""Ranks without a guardian, where they start; what they do then is in test_platforms."""

from __future__ import annotations

import os
import socket

import pytest
from helpers import is_running, wait_until

from rankexec._gang.call import Seat
from rankexec.launchers import Ended, _unguarded
from rankexec.launchers._unguarded import kill_all, start_unguarded

PREPARATION = {"umask": 0o022}
SEATS = [Seat(rank, 2, "127.0.0.1", 1, rank, 2) for rank in range(2)]


def end(rank):
    """Wait for a rank's end, and close what is held of it; return its exit code."""
    codes = []

    def ended():
        codes.extend(item.exitcode for item in rank.news() if isinstance(item, Ended))
        return codes

    wait_until(ended, f"the end of {rank.pid}")
    for held in (rank, rank.stdout, rank.stderr, rank.stacks):
        held.close()
    return codes[0]


def test_an_interpreter_that_does_not_start():
    """The error names the rank and has what the interpreter said; the others are ended."""
    environments = [dict(os.environ), {**os.environ, "PYTHONHOME": "/nowhere"}]
    starting = start_unguarded(SEATS, environments, PREPARATION)
    first = next(starting)
    with pytest.raises(OSError, match=r"(?s)interpreter of rank 1 ended with 1: .*encodings"):
        next(starting)
    first.kill()
    assert end(first) == -9


def test_ranks_nobody_takes():
    """They are ended when the gang that wanted them is given up."""
    starting = start_unguarded(SEATS, [dict(os.environ)] * 2, PREPARATION)
    first = next(starting)
    second = starting.gi_frame.f_locals["starting"][0].process.pid
    starting.close()
    assert not is_running(second)
    kill_all()
    assert end(first) == -9


def test_strangers_on_the_port(monkeypatch):
    """Whoever else connects is none of the ranks, whether silent or not."""
    strangers = []

    class Arrivals(_unguarded._Arrivals):
        def __init__(self, count):
            super().__init__(count)
            strangers.extend(socket.create_connection(("127.0.0.1", self.port)) for _ in range(2))
            strangers[1].sendall(b"x" * 100)

    monkeypatch.setattr(_unguarded, "_Arrivals", Arrivals)
    ranks = list(start_unguarded(SEATS, [dict(os.environ)] * 2, PREPARATION))
    for stranger in strangers:
        stranger.close()
    assert [rank.news()[0].pid for rank in ranks] == [rank.pid for rank in ranks]
    kill_all()
    assert [end(rank) for rank in ranks] == [-9, -9]
