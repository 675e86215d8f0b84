"""Which names are the ranks' and which the caller's."""

from __future__ import annotations

import sys
import types

import pytest

from rankexec._gang.names import Names
from rankexec._gang.sets import NOTHING, Kept


def travels(names: Names, *reads: str) -> dict[str, object]:
    """Return what is sent with a function that reads these names."""
    main = vars(sys.modules["__main__"])
    code = compile(f"def reading(): return {', '.join(reads)}", "<test>", "exec").co_consts[0]
    reached = {name: main[name] for name in reads}
    going = names.for_call(NOTHING)
    going.leave_out(types.FunctionType(code, main), reached)
    going.packed()
    return reached


def test_what_is_bound_while_a_call_waits_for_its_turn(main) -> None:
    """By another thread, that is: it is not taken for what the call has set."""
    names = Names()
    main.update(x=1, y=1)
    names.are_theirs(["x", "y"])
    names.for_call(NOTHING)
    main["x"] = 2
    with names.following(NOTHING, None):
        main["y"] = 2
    assert travels(names, "x", "y") == {"x": 2}


def test_what_is_bound_between_calls(main) -> None:
    """It is the caller's until a call has set it again, or has been sent it."""
    names = Names()
    main.update(x=1)
    names.for_call(NOTHING).ended([Kept(["x"])])
    assert travels(names, "x") == {}
    main.update(x=2)
    names.for_call(NOTHING).ended([Kept(["y"])])
    assert travels(names, "x") == {"x": 2}
    assert travels(names, "x") == {}


def test_what_is_bound_while_a_call_runs(main) -> None:
    """It is the caller's, whatever the call has set, where that is seen before the call ends."""
    names = Names()
    main.update(x=1)
    assert travels(names, "x") == {"x": 1}
    runs = names.for_call(NOTHING)
    main.update(x=2)
    names.for_call(NOTHING)
    runs.ended([Kept(["x"])])
    assert travels(names, "x") == {"x": 2}


@pytest.mark.parametrize("value", [None, 1, [1], {1}], ids=repr)
def test_none(main, value) -> None:
    """It is a value as others are, and not what a dead reference returns."""
    names = Names()
    main["x"] = value
    assert travels(names, "x") == {"x": value}
    assert travels(names, "x") == {}
    main["x"] = None if value else 1
    assert travels(names, "x") == {"x": main["x"]}


def test_nothing_is_kept_of_what_the_caller_lets_go(main) -> None:
    """At once where it can be referred to weakly, else from the next call on."""
    names = Names()
    main.update(x={1}, y=[1])
    assert travels(names, "x", "y") == {"x": {1}, "y": [1]}
    x, y = main.pop("x"), main.pop("y")
    assert sys.getrefcount(x) == 2  # and its argument
    names.for_call(NOTHING)
    assert sys.getrefcount(y) == 2


def test_what_never_came_travels(main) -> None:
    """With the next call."""
    names = Names()
    main.update(x=1)
    going = names.for_call(NOTHING)
    going.values.update(x=1)
    going.packed()
    assert travels(names, "x") == {}
    going.lost()
    assert travels(names, "x") == {"x": 1}
