"""What the ranks of a session make within what they have is theirs, however it is passed on."""

from __future__ import annotations

from collections import deque

import faulty_ranks
import pytest
from helpers import run_script, with_children_only, with_the_caller
from test_identity import Node, Slotted, Tagged, all_of, keep
from test_session import open_session  # noqa: F401  # a fixture

from rankexec._gang.within import Step, Within, follow


@pytest.fixture
def session(open_session):  # noqa: F811  # the fixture
    """A session that gathers."""
    return open_session(gather=True)


def grow(kept):
    """Put something into each kind of what has come, and keep it all."""
    kept.node.made = Node(rows=[1])
    kept.slotted.value = Node(rows=[2])
    kept.list.append(Node(rows=[3]))
    kept.dict["made"] = {"deep": (Node(rows=[4]), [Node(rows=[5])])}
    kept.dict[7] = Node(rows=[6])
    kept.dict[kept.node] = Node(rows=[7])
    kept.dict[(1, 2)] = Node(rows=[8])
    kept.deque.append(Node(rows=[9]))
    kept.tagged.made = Node(rows=[10])
    keep(kept=kept)


PLACES = {
    "an attribute": lambda kept: kept.node.made,
    "a slot": lambda kept: kept.slotted.value,
    "a list": lambda kept: kept.list[-1],
    "a tuple": lambda kept: kept.dict["made"]["deep"][0],
    "a list in a tuple": lambda kept: kept.dict["made"]["deep"][1],
    "below what is made": lambda kept: kept.dict["made"]["deep"][1][0].rows,
    "a dict by number": lambda kept: kept.dict[7],
    "a dict by an object": lambda kept: kept.dict[kept.node],
    "a dict by position": lambda kept: kept.dict[(1, 2)],
    "a deque": lambda kept: kept.deque[-1],
    "a subclass of dict": lambda kept: kept.tagged.made,
}


@pytest.fixture
def grown(session):
    """What the caller and its ranks have, in which a call has put more."""
    kept = Node(
        node=Node(), slotted=Slotted(), list=[], dict={}, deque=deque(), tagged=Tagged(),
        more=Node(), rows=[],
    )  # fmt: skip
    session.submit(grow, kept).result()
    return kept


@with_the_caller
@pytest.mark.parametrize("place", PLACES)
def test_what_is_put_into(session, grown, place):
    """Wherever: as an argument, and once more, when the ranks have moved it."""
    find = PLACES[place]
    made = find(grown)

    def is_it(given):
        return find(faulty_ranks.kept["kept"]) is given

    assert all_of(session.submit(is_it, made))

    def move(given):
        faulty_ranks.kept["kept"].rows = [given]
        return faulty_ranks.kept["kept"].rows[0] is given

    assert all_of(session.submit(move, made))
    assert all_of(session.submit(lambda same: faulty_ranks.kept["kept"].rows[0] is same, made))


@with_the_caller
def test_what_only_the_caller_puts_in(session, grown):
    """It is new to the ranks, wherever it stands, and no other object that is where it would be."""
    session.submit(lambda: faulty_ranks.kept["kept"].list.append(Node(rows=["their own"]))).result()
    own = Node(rows=["caller's"])
    grown.list.insert(1, own)
    grown.more.own = [own]

    def look(given):
        kept = faulty_ranks.kept["kept"]
        return given.rows, kept.list[1] is given, hasattr(kept.more, "own")

    assert session.submit(look, own).result()[1] == (["caller's"], False, False)


@with_the_caller
def test_what_nobody_can_say_the_way_to(session):
    """In a set, for instance: it arrives as a copy, and that is said."""
    known = Tagged(items=set())
    session.submit(keep, kept=known).result()
    session.submit(lambda: faulty_ranks.kept["kept"]["items"].add(Node(rows=[1]))).result()
    (made,) = known["items"]
    with pytest.warns(RuntimeWarning, match="made a Node within what they have, and where cannot"):
        rows = session.submit(lambda given: given.rows, made).result()
    assert rows == [[1]] * 2


def test_what_is_of_another_kind():
    """Where two ranks have made different things, none is taken for the other, and that is said."""
    owner = Node(made=[1])
    way = Within(5, (Step("attribute", "made"),), "builtins.list")
    assert follow(way, {5: owner}.get, []) is owner.made
    assert follow(way, {5: owner}.get, [owner.made]) is None
    assert follow(way._replace(steps=(Step("attribute", "gone"),)), {5: owner}.get, []) is None
    with pytest.warns(RuntimeWarning, match=r"made \(\.made\) is builtins.dict on the caller's"):
        assert follow(way._replace(kind="builtins.dict"), {5: owner}.get, []) is None


@with_children_only
def test_what_the_caller_has_not_seen(session, grown):
    """Without a rank of its own the caller has put nothing in."""
    assert not hasattr(grown.node, "made")
    grown.node.made = Node(rows=["caller's"])
    rows = session.submit(lambda given: given.rows, grown.node.made).result()
    assert rows == [["caller's"]] * 2


TENSORS = """\
import os
import torch
from rankexec import RankedExecutor

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 2))
first = model[0].weight
optimizer = torch.optim.SGD([first], lr=0.1, momentum=0.9)

with RankedExecutor(2, gather=True).session() as session:

    def grow():
        torch.manual_seed(1)
        model.append(torch.nn.Linear(2, 1))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    session.submit(grow).result()
    every = torch.optim.SGD(model.parameters(), lr=1.0)
    gradients = [parameter.grad for parameter in model.parameters()]
    momentum = optimizer.state[first]["momentum_buffer"]

    def look():
        mine = [p for group in every.param_groups for p in group["params"]]
        return [
            all(one is other for one, other in zip(mine, model.parameters(), strict=True)),
            all(one is p.grad for one, p in zip(gradients, model.parameters(), strict=True)),
            momentum is optimizer.state[first]["momentum_buffer"],
        ]

    print(session.submit(look).result())
"""


def test_layers_gradients_and_momentum(tmp_path):
    """An optimizer that the notebook binds has the parameters of a layer that a call has added."""
    pytest.importorskip("torch")
    assert run_script(tmp_path, TENSORS) == f"{[[True] * 3] * 2}\n"
