"""Who failed first: the rules, without any process or clock."""

from __future__ import annotations

import errno
import os

import pytest

from rankexec._gang.call import Died, Raised, Returned
from rankexec._gang.outcomes import (
    CERTAIN_SECONDS,
    LATE_SECONDS,
    Outcomes,
    describe,
    is_lost_connection,
)


def raised(rank, when, error=None):
    """Return the outcome of a rank that raised a ValueError, or `error`."""
    return describe(rank, when, error or ValueError(f"of rank {rank}"))


def lost(rank, when):
    """Return the outcome of a rank whose peer went away."""
    return raised(rank, when, ConnectionResetError(f"of rank {rank}"))


def died(rank, when):
    """Return the outcome of a rank whose process ended."""
    return Died(rank, when, pid=100 + rank, host="here", exitcode=-9)


def reported(size, *outcomes):
    """Return what has been reported, each at the time at which it happened."""
    state = Outcomes(size)
    for outcome in outcomes:
        state.report(outcome, outcome.when)
    return state


# --- which failure was the first ---


def test_no_failure():
    """Ranks that returned are no cause."""
    assert reported(2, Returned(0, 1.0), Returned(1, 2.0)).cause() is None


def test_the_earliest_wins():
    """The clock decides, and not the order in which the reports came."""
    first, second = raised(1, 1.0), raised(0, 2.0)
    assert reported(2, second, first).cause() is first


def test_a_death_and_an_exception_are_equal():
    """Between them the clock decides as well."""
    assert reported(2, raised(0, 2.0), died(1, 1.0)).cause().rank == 1
    assert reported(2, raised(0, 1.0), died(1, 2.0)).cause().rank == 0


@pytest.mark.parametrize("later", [raised(1, 9.0), died(1, 9.0)], ids=["exception", "death"])
def test_a_lost_connection_loses(later):
    """It only says that a peer is gone: a later failure of another rank is the cause."""
    assert reported(3, lost(0, 1.0), lost(2, 1.5), later).cause() is later


def test_a_lost_connection_alone_is_the_cause():
    """The earliest, if all that failed are lost connections."""
    first = lost(2, 1.0)
    assert reported(3, lost(0, 2.0), first, Returned(1, 0.5)).cause() is first


def test_a_ranks_first_failure_stays():
    """What it raised is not replaced by its death, nor by what its context raised."""
    first = raised(0, 1.0)
    state = reported(2, first, died(0, 2.0), raised(0, 3.0))
    assert state.by_rank == [first, None]


def test_a_success_can_turn_into_a_failure():
    """A rank that returned may still fail to leave its context, or die there."""
    second = raised(0, 2.0)
    assert reported(1, Returned(0, 1.0), second).by_rank == [second]
    assert reported(1, Returned(0, 1.0), died(0, 2.0)).cause() == died(0, 2.0)


def test_a_failure_does_not_turn_into_a_success():
    """Whatever comes later."""
    first = raised(0, 1.0)
    assert reported(1, first, Returned(0, 2.0)).cause() is first


# --- when a gang is over ---


def test_success_is_over_when_all_have_left():
    """Having reported is not enough: leaving the context is part of the call."""
    state = reported(2, Returned(0, 1.0), Returned(1, 1.0))
    assert state.settled_at() is None
    assert not state.settled(1e9)
    state.left(0)
    assert not state.settled(1e9)
    assert (state.has_left(0), state.has_left(1)) == (True, False)
    state.left(1)
    assert state.settled(1.0)


def test_leaving_without_a_report_is_not_enough():
    """The end of a process comes with an outcome; without one the gang goes on."""
    state = reported(2, Returned(0, 1.0))
    state.left(0)
    state.left(1)
    assert state.all_left
    assert not state.all_reported
    assert not state.settled(1e9)


def test_a_failure_waits_a_little_for_an_earlier_one():
    """Whatever was on its way may still arrive."""
    state = reported(2, raised(0, 10.0))
    assert state.settled_at() == 10.0 + CERTAIN_SECONDS
    assert not state.settled(10.0)
    assert state.settled(10.0 + CERTAIN_SECONDS)
    earlier = raised(1, 9.9)
    state.report(earlier, 10.1)
    assert state.cause() is earlier


def test_a_lost_connection_waits_for_its_cause():
    """At most two seconds from the first failure on."""
    state = reported(2, lost(0, 10.0))
    assert state.settled_at() == 10.0 + LATE_SECONDS
    assert LATE_SECONDS == 2
    assert not state.settled(10.0 + CERTAIN_SECONDS)
    assert state.settled(10.0 + LATE_SECONDS)


def test_once_the_cause_is_known_nobody_waits():
    """The time counts from the first failure that was seen, not from its cause."""
    state = reported(3, lost(0, 10.0))
    state.report(raised(1, 9.0), 11.0)
    assert state.settled(11.0)


def test_time_counts_from_when_it_was_seen():
    """A report may have lain in a pipe: what counts for waiting is when it was taken in."""
    state = Outcomes(2)
    state.report(raised(0, 1.0), 50.0)
    assert state.settled_at() == 50.0 + CERTAIN_SECONDS


def test_when_all_have_reported_they_may_leave():
    """With every outcome known, the contexts get their two seconds to be left in order."""
    state = reported(2, raised(0, 10.0), Returned(1, 10.0))
    assert state.settled_at() == 10.0 + LATE_SECONDS
    state.left(0)
    state.left(1)
    assert state.settled(10.0)


# --- what is a lost connection ---


class DistBackendError(RuntimeError):
    """As torch's."""

    __module__ = "torch.distributed"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        BrokenPipeError(),
        ConnectionAbortedError(),
        OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        DistBackendError("NCCL communicator was aborted"),
        RuntimeError(
            "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:36721"
        ),
        RuntimeError("Connection reset by peer"),
        RuntimeError("[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 1800000 ms"),
    ],
    ids=repr,
)
def test_lost_connections(error):
    """The types and the texts of Python and of torch."""
    assert is_lost_connection(error)
    assert describe(0, 1.0, error).lost_connection


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Connection closed by peer"),
        RuntimeError("CUDA out of memory"),
        ConnectionRefusedError(),
        TimeoutError(),
        OSError(errno.ENOENT, "Broken pipe"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors(error):
    """Everything else is a cause of its own."""
    assert not is_lost_connection(error)


def test_what_a_lost_connection_led_to():
    """An exception raised from one, or while one was handled, is a consequence too."""
    chained = ValueError("training failed")
    chained.__cause__ = KeyError()
    chained.__cause__.__context__ = ConnectionResetError()
    assert is_lost_connection(chained)


def test_a_chain_that_bites_its_tail():
    """Causes can form a ring; it is walked once."""
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_lost_connection(first)


# --- descriptions ---


def test_describe():
    """The description says in plain text what the exception says."""
    try:
        raise KeyError("key")
    except KeyError as caught:
        error = caught
    outcome = describe(3, 7.5, error)
    assert isinstance(outcome, Raised)
    assert (outcome.rank, outcome.when, outcome.exception) == (3, 7.5, error)
    assert (outcome.type_name, outcome.text) == ("KeyError", "'key'")
    assert outcome.traceback_text.startswith("Traceback (most recent call last):")
    assert "in test_describe" in outcome.traceback_text
    assert not outcome.lost_connection


class SpeechlessError(Exception):
    """`str()` of it raises."""

    def __str__(self) -> str:
        raise ValueError("no words")


class SpeechlessRuntimeError(SpeechlessError, RuntimeError):
    """The same, of a type whose text is looked at."""


@pytest.mark.parametrize("kind", [SpeechlessError, SpeechlessRuntimeError])
def test_describe_what_has_no_text(kind):
    """The user's own `__str__` may raise; that is said in its place."""
    outcome = describe(0, 1.0, kind())
    assert outcome.type_name == f"{__name__}.{kind.__qualname__}"
    assert "no words" in outcome.text


def test_a_class_that_does_not_say_where_it_is() -> None:
    """`__module__` may be anything; the exception is described all the same."""
    kind = type("Nowhere", (Exception,), {"__module__": None})
    assert not is_lost_connection(kind())
    assert describe(0, 0.0, kind("text")).text == "text"
