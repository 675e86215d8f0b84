"""Which names a call binds, whatever it deletes, and to whatever address."""

from __future__ import annotations

import pytest

from rankexec._gang.bound import Bound


@pytest.mark.parametrize(
    ("call", "names"),
    {
        "pass": "",
        "x = y = 1": "x y",
        "del a; x = 1": "x",
        "del a, b, c; x = 1": "x",
        "del c; x = 1; c = 1": "x c",
        "x = 1; del a; a = 2": "x a",
        "del a, c; x = 1; c = 1; y = 1": "x c y",
        "x = 1; del x": "",
        "x = 1; globals()[2] = 3": "x",
        "b = 3": "",
    }.items(),
)
def test_new_names(main, call, names) -> None:
    """Also where others are deleted; of those that were there, none that is not watched."""
    main.update(__builtins__=__builtins__, a=1, b=2, c=3)
    bound = Bound(())
    exec(call, main)
    assert set(bound.names()) == set(names.split())


@pytest.mark.parametrize("loops", [1, 2, 3, 4])
@pytest.mark.parametrize("value", ["[n]", "n / 7", "{n}", "kind()", "n + 1000"])
def test_what_is_watched(main, value, loops) -> None:
    """An address that is given away again is no value."""
    exec(f"class kind: pass\nb = n = 1\na = {value}", main)
    bound = Bound(["a", "b", "missing"])
    exec(f"for n in range({loops}): a = {value}", main)
    assert bound.names() == ["a"]


def test_what_is_deleted_is_gone(main) -> None:
    """It is watched, but not held."""
    exec("class kind: pass\na = kind()\nimport weakref\nseen = weakref.ref(a)", main)
    bound = Bound(["a"])
    exec("del a", main)
    assert main["seen"]() is None
    assert bound.names() == []
