"""Which names are the ranks' and which the caller's, where two threads of the caller meet."""

from __future__ import annotations

import sys

import pytest

from rankexec._gang.names import Names


@pytest.fixture
def main(monkeypatch):
    """A `__main__` of its own, to be written to."""
    module = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module.__dict__


def travels(names: Names, **reached: object) -> dict[str, object]:
    """Return what of these is sent with the next call."""
    names.for_call().leave_out(reached)
    return reached


def test_what_is_bound_while_a_call_waits_for_its_turn(main) -> None:
    """By another thread, that is: it is not taken for what the call has set."""
    names = Names()
    main.update(x=1, y=1)
    names.are_theirs(["x", "y"])
    names.for_call()
    main["x"] = 2
    with names.following(()):
        main["y"] = 2
    assert travels(names, x=2, y=2) == {"x": 2}


def test_what_is_bound_between_calls(main) -> None:
    """It is the caller's until a call has set it again, or has been sent it."""
    names = Names()
    main.update(x=1)
    names.after_call(["x"], ())
    assert travels(names, x=1) == {}
    main.update(x=2)
    assert travels(names, x=2) == {"x": 2}
    names.after_call([], ["x", "never there"])
    assert travels(names, x=2) == {}
    assert "never there" not in names.known


def test_nothing_is_held_of_what_the_caller_has_let_go(main) -> None:
    """Not longer than until the next call."""
    names = Names()
    main.update(x=[])
    names.are_theirs(["x"])
    held = main.pop("x")
    names.for_call()
    assert held not in names.known.values()
