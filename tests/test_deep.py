"""What is nested deeply, there and back; and the caller's recursion limit."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from helpers import with_children_only
from test_wire import round_trip

from rankexec import NotShippable
from rankexec._gang import deep
from rankexec._gang.call import Call
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import pack_result, unpack


def nest(times: int, inner: Any = None) -> list[Any]:
    """Return a list within lists."""
    value = [] if inner is None else [inner]
    for _ in range(times):
        value = [value]
    return value


def depth(value: list[Any]) -> int:
    """Return within how many."""
    count = 0
    while value and isinstance(value[0], list):
        value = value[0]
        count += 1
    return count


class Link:
    """Of a chain."""

    def __init__(self, rest: Any) -> None:
        self.rest = rest


def chain(length: int) -> Any:
    """Return a linked list."""
    link = None
    for _ in range(length):
        link = Link(link)
    return link


def length(link: Any) -> int:
    """Return how long it is."""
    count = 0
    while link is not None:
        link, count = link.rest, count + 1
    return count


@pytest.mark.parametrize("times", [1000, 5000])
def test_lists(make_executor, times):
    """Both ways."""
    executor = make_executor(gather=True, output="caller")
    assert executor.submit(depth, nest(times)).result() == [times, times]
    assert [depth(value) for value in executor.submit(nest, times).result()] == [times, times]


@pytest.mark.parametrize("links", [500, 2000])
def test_a_linked_list(make_executor, links):
    """Both ways."""
    executor = make_executor(gather=True)
    assert executor.submit(length, chain(links)).result() == [links, links]
    assert [length(value) for value in executor.submit(chain, links).result()] == [links, links]


def innermost(value: list[Any]) -> Any:
    """Return what is in it."""
    while isinstance(value, list):
        value = value[0]
    return value


def test_values_of_this_thread():
    """A deep value may be pickled by another thread: they are this one's nevertheless."""
    own = threading.local()
    own.value = 5
    arrived = unpack(pack_call(Call(print, (nest(1000, own),), {}))).args[0]
    assert innermost(arrived).value == 5


def test_what_is_below(caller_rank):
    """Is named, whoever has found it."""
    with pytest.raises(NotShippable, match="a generator"):
        pack_call(Call(print, (nest(1000, (i for i in ())),), {}))


class Endless:
    """Is within itself, ever anew."""

    def __reduce__(self) -> Any:
        return Endless, (Endless(),)


@pytest.mark.parametrize("pack", [lambda v: pack_call(Call(print, (v,), {})), round_trip])
def test_without_end(pack):
    """Is an error and no crash."""
    with pytest.raises((NotShippable, RecursionError)):
        pack(Endless())


def test_results_that_only_dill_takes():
    """As in calls."""
    view = {}.keys().__iter__
    result = unpack(pack_result([view], frozenset()))
    assert callable(result[0])


def recurse(times: int) -> int:
    """Call itself so often."""
    return 0 if times == 0 else 1 + recurse(times - 1)


@pytest.fixture
def limit():
    """Put the limit back."""
    before = sys.getrecursionlimit()
    yield sys.setrecursionlimit
    sys.setrecursionlimit(before)


@with_children_only
def test_the_callers_limit(make_executor, limit):
    """Holds in ranks; one that a session's rank sets stays, until the caller sets another."""
    executor = make_executor()
    with executor.session() as session:
        with pytest.raises(RecursionError):
            session.submit(recurse, 3000).result()
        limit(5000)
        assert executor.submit(recurse, 3000).result() == 3000
        assert session.submit(recurse, 3000).result() == 3000
        session.submit(sys.setrecursionlimit, 7000).result()
        assert session.submit(sys.getrecursionlimit).result() == 7000
        limit(4000)
        assert session.submit(sys.getrecursionlimit).result() == 4000


def test_the_limit_is_put_back():
    """Whatever comes of it."""
    before = sys.getrecursionlimit()
    assert deep.deeply(sys.getrecursionlimit) >= deep.DEEPEST
    with pytest.raises(KeyError):
        deep.deeply(lambda: {}["x"])
    assert sys.getrecursionlimit() == before
