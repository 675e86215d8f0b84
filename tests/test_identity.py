"""What the ranks of a session have is the same object for whatever travels later."""

from __future__ import annotations

import gc
import os
import random
import sys
import types
import weakref
from collections import OrderedDict, deque
from functools import partial
from pathlib import Path

import faulty_ranks
import pytest
from helpers import (
    result_by_torchrun,
    result_of_program,
    run_script,
    with_children_only,
    with_the_caller,
)
from test_session import main_as_before, open_session  # noqa: F401  # fixtures

from rankexec._gang.identity import nobody_else_holds
from rankexec._gang.main import main_namespace
from rankexec._gang.travelled import Travelled

HERE = Path(__file__).parent


class Node:
    """Anything with attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Slotted:
    """Without a dict, and without weak references."""

    __slots__ = ("value",)

    def __init__(self, value=None):
        self.value = value


class Sentinel:
    """Nothing but itself: the garbage collector does not know of it."""

    __slots__ = ()


class Tagged(dict):
    """A subclass, which has both."""


KINDS = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": deque,
    "OrderedDict": OrderedDict,
    "a subclass of dict": Tagged,
    "an instance": Node,
    "with slots": Slotted,
    "an object": object,
    "a sentinel": Sentinel,
    "a cell": types.CellType,
    "a namespace": types.SimpleNamespace,
}


@pytest.fixture
def session(open_session):  # noqa: F811  # the fixture
    """A session that gathers."""
    return open_session(gather=True)


def keep(**objects):
    """Keep objects on this rank."""
    faulty_ranks.kept = objects


def is_kept(name, obj):
    """Return whether it is the one that this rank has kept under the name."""
    return faulty_ranks.kept[name] is obj


def all_of(found):
    """Return whether all ranks say so."""
    return found.result() == [True, True]


# --- kinds and ways ---


@pytest.mark.parametrize("kind", KINDS)
def test_kind(session, kind):
    """An argument that a rank has kept is that object when it comes once more."""
    given = KINDS[kind]()
    session.submit(keep, it=given).result()
    assert all_of(session.submit(is_kept, "it", given))


@pytest.mark.parametrize(
    ("way", "reached"),
    {
        "in a list": lambda node: ([node], lambda found: found[0]),
        "in a tuple": lambda node: ((1, node), lambda found: found[1]),
        "as a value": lambda node: ({"a": {"b": node}}, lambda found: found["a"]["b"]),
        "in an attribute": lambda node: (Node(inner=node), lambda found: found.inner),
        "in a slot": lambda node: (Slotted(node), lambda found: found.value),
        "in a partial": lambda node: (partial(print, node), lambda found: found.args[0]),
        "as a method's": lambda node: (node.__init__, lambda found: found.__self__),
        "in a closure": lambda node: ((lambda: node), lambda found: found()),
        "as a default": lambda node: ((lambda it=node: it), lambda found: found()),
    }.items(),
)
def test_way(session, way, reached):
    """Whatever it is reached by."""
    node = Node()
    session.submit(keep, it=node).result()
    given, find = reached(node)
    assert all_of(session.submit(lambda found: is_kept("it", find(found)), given)), way


@pytest.mark.parametrize(
    "inner", [[1], {"a": 1}, {1}, bytearray(b"a")], ids=lambda x: type(x).__name__
)
def test_what_belongs_to_an_object(session, inner):
    """A list in an attribute, and one in a list there, are that object's own."""
    node = Node(one=inner, more={"deep": [type(inner)(inner)]})
    session.submit(keep, it=node).result()
    assert all_of(session.submit(lambda x: x is faulty_ranks.kept["it"].one, inner))
    deep = node.more["deep"][0]
    assert all_of(session.submit(lambda x: x is faulty_ranks.kept["it"].more["deep"][0], deep))


def roll():
    """Take the first out of the lists that this rank has kept, and put in another."""
    it = faulty_ranks.kept["it"]
    it.rows.pop(0)
    it.rows.append(["new"])
    del it.slots[0]
    it.slots[2] = ["new"]


def test_rows_that_move(session):
    """A row is itself, wherever it is now; what has come to its place, or its address, is not."""
    node = Node(rows=[[n] for n in range(4)], slots={0: ["a"], 1: ["b"]})
    session.submit(keep, it=node).result()
    row, slot, first = node.rows[2], node.slots[1], node.rows[0]
    session.submit(roll).result()

    def look(row, slot):
        it = faulty_ranks.kept["it"]
        return row is it.rows[1] and slot is it.slots[1]

    assert all_of(session.submit(look, row, slot))
    with pytest.warns(RuntimeWarning, match=r"was below Node \(\.rows\[0\]\) is on no rank"):
        found = session.submit(lambda x: (x, x in faulty_ranks.kept["it"].rows), first).result()
    assert found == [([0], False)] * 2


@pytest.mark.parametrize("inner", ["a number", "an object"])
@pytest.mark.parametrize("owner", ["an object", "a name"])
def test_row_that_is_taken_out(session, inner, owner):
    """It is the one that a rank has kept elsewhere, though another one is now in its place."""
    rows = [[Node() if inner == "an object" else n] for n in range(3)]
    if owner == "an object":
        node = Node(rows=rows)
        session.submit(keep, it=node).result()
    else:
        session.push(taken_from=rows)
    row = rows[1]

    def take_out():
        rows = main_namespace().get("taken_from") or faulty_ranks.kept["it"].rows
        faulty_ranks.kept = {"row": rows.pop(1), "rows": rows}
        rows.insert(1, ["new"])

    session.submit(take_out).result()
    assert all_of(session.submit(is_kept, "row", row))
    assert all_of(session.submit(is_kept, "rows", rows))


@pytest.mark.parametrize("owner", ["an object", "a name"])
def test_rows_of_a_name_that_move(session, owner):
    """The same in lists and dicts alone."""
    table = {"rows": [[Node() if owner == "an object" else n] for n in range(3)]}
    session.push(table=table)
    row = table["rows"][1]
    session.run_cell("table['rows'].pop(0); table['rows'].append(['new'])")
    assert all_of(session.submit(lambda x: x is main_namespace()["table"]["rows"][0], row))


def test_row_of_what_is_gone(session):
    """A list that outlives what it belonged to is the same on both sides."""
    node = Node(rows=[[0], [1]])
    session.submit(keep, it=node).result()
    rows = node.rows

    def let_go():
        faulty_ranks.kept = {"rows": faulty_ranks.kept["it"].rows}

    session.submit(let_go).result()
    del node
    assert all_of(session.submit(is_kept, "rows", rows))
    assert all_of(session.submit(lambda row: row is faulty_ranks.kept["rows"][1], rows[1]))


def test_cycle_through_a_list_is_gone(session):
    """What holds a list does so no longer when its object is garbage, here and there."""

    def fill():
        it = faulty_ranks.kept["it"]
        it.rows.append(it)
        it.more["deep"].append(it)
        faulty_ranks.seen = weakref.ref(it)

    def is_gone():
        faulty_ranks.kept = {}
        gc.collect()
        return faulty_ranks.seen() is None

    node = Node(rows=[], more={"deep": []})
    session.submit(keep, it=node).result()
    session.submit(fill).result()
    del node
    assert all_of(session.submit(is_gone))


def test_objects_together(session):
    """What is shared by what travels in two calls is shared there; a cycle comes back to itself."""
    node = Node(items=[])
    node.me = node
    first, second = Node(inner=node), Node(inner=node, items=node.items)
    session.submit(keep, first=first).result()

    def look(second):
        inner = faulty_ranks.kept["first"].inner
        return second.inner is inner and inner.me is inner and second.items is inner.items

    assert all_of(session.submit(look, second))


def test_cells_of_closures(session):
    """Two functions that share a variable go on sharing it, though they travel apart."""

    def make():
        count = 0

        def add():
            nonlocal count
            count += 1

        return add, lambda: count

    add, read = make()

    def run():
        add()
        keep(add=add)

    session.submit(run).result()
    # The caller's own rank has counted in the caller's own variable.
    assert session.submit(read).result() == [1, 1]


def run_in_main(session, body):
    """Submit a function as a cell would define it, which reads names of `__main__`."""
    main = main_namespace()
    exec(f"def own():\n    {body}", main)  # as a kernel does
    main.update(keep=keep)
    return session.submit(main["own"]).result()


def class_in_main(body):
    """Return a class as a cell would define it, so that it travels by value."""
    main = main_namespace()
    exec(f"class Own:\n    {body}", main)  # as a kernel does
    return main["Own"]


def test_attributes_of_classes(session, main_as_before):  # noqa: F811  # the fixture
    """A class that travels again sets back none; what the caller itself has changed travels."""
    own = class_in_main("count, items, limit = 0, [], 1")

    def count(instance):
        cls = type(instance)
        cls.count += 1
        cls.items = [*cls.items, "there"]
        cls.theirs = 5
        instance.items.append(cls.limit)
        return cls.count, cls.limit, len(cls.items), cls.__dict__.get("more")

    assert session.submit(count, own()).result() == [(1, 1, 2, None)] * 2
    assert session.submit(count, own()).result() == [(2, 1, 4, None)] * 2
    own.limit, own.more = 2, 3
    assert session.submit(count, own()).result() == [(3, 2, 6, 3)] * 2
    assert session.submit(count, own()).result() == [(4, 2, 8, 3)] * 2


def test_functions(session):
    """One that is kept there is that one, whatever brings it along, with what ranks have set."""

    def stop():
        return "stop"

    stop.calls, stop.limit = 0, 1
    session.submit(keep, callbacks=[stop], by={stop: 1}).result()

    def look(given):
        kept = faulty_ranks.kept
        given.calls += 1
        is_it = given in kept["callbacks"] and kept["by"].get(given) == 1 and stop is given
        return is_it, given.calls, given.limit, given(), given.__defaults__

    assert session.submit(look, stop).result() == [(True, 1, 1, "stop", None)] * 2
    assert session.submit(look, stop).result() == [(True, 2, 1, "stop", None)] * 2
    stop.limit = 2
    stop.__code__, stop.__defaults__ = (lambda x=5: x).__code__, (7,)
    assert session.submit(look, stop).result() == [(True, 3, 2, 7, (7,))] * 2


def test_methods_that_are_patched(session, main_as_before):  # noqa: F811  # the fixture
    """As notebooks do, one method a cell."""
    own = class_in_main("def name(self): return 1")
    kept = own()
    assert session.submit(lambda: (keep(kept=kept), kept.name())[1]).result() == [1, 1]
    own.name = lambda _: 2

    def names(new):
        return faulty_ranks.kept["kept"].name(), new.name()

    assert session.submit(names, own()).result() == [(2, 2)] * 2


def test_class_that_the_caller_lets_go(session, main_as_before):  # noqa: F811  # the fixture
    """It is gone, also if it holds itself."""
    own = class_in_main("kept = None")
    own.kept = own()
    session.submit(lambda given: given.kept is not given, own()).result()
    gone = weakref.ref(own)
    del own, main_namespace()["Own"]
    session.submit(len, []).result()  # the last call is remembered
    gc.collect()
    assert gone() is None


# --- which call it is ---


@with_children_only
def test_what_no_rank_keeps(session):
    """It travels again, as it is then: what a call has done to its argument was to a copy."""
    given = [0]

    def append(found):
        found.append(1)
        return list(found)

    assert [session.submit(append, given).result()[0] for _ in range(3)] == [[0, 1]] * 3
    given.append(2)
    assert session.submit(append, given).result()[0] == [0, 2, 1]


@with_children_only
def test_what_only_a_cycle_keeps(session):
    """It travels again, too, whenever a rank's garbage collector runs."""
    given = Node(value=0)

    def change(found):
        found.me, found.value = found, found.value + 1
        return found.value

    assert [session.submit(change, given).result() for _ in range(3)] == [[1, 1]] * 3


@with_children_only
def test_calls_that_wait(session):
    """They bring what was there when they were submitted, or find what an earlier one has kept."""
    buffer = bytearray(1)
    futures = []
    for number in range(5):
        buffer[0] = number
        futures.append(session.submit(bytes, buffer))
    assert [future.result()[1][0] for future in futures] == list(range(5))
    node = Node(value=1)
    session.submit(keep, it=node)
    assert all_of(session.submit(is_kept, "it", node))
    session.submit(keep)
    assert session.submit(lambda found: found.value, node).result() == [1, 1]


@with_children_only
def test_what_is_let_go_in_part_while_a_call_waits(session):
    """It is refused: with the rest, what is left would be there twice."""
    inner = Node()
    outer = Node(inner=inner)
    session.submit(keep, outer=outer).result()
    session.submit(lambda: keep(inner=faulty_ranks.kept["outer"].inner))
    error = session.submit(is_kept, "inner", outer).exception()
    assert "Node was let go on this rank by a call that ran before" in str(error)
    assert all_of(session.submit(lambda found: is_kept("inner", found.inner), outer))


@with_children_only
def test_call_that_never_arrives(session):
    """What it was to bring travels with the next one."""
    node = Node(value=3)
    started = session.submit(faulty_ranks.hang)
    cancelled = session.submit(keep, it=node)
    later = session.submit(lambda found: found.value, node)
    assert cancelled.cancel()
    assert started.cancel()
    assert later.result() == [3, 3]
    session.submit(keep, it=node).result()
    assert all_of(session.submit(is_kept, "it", node))


def test_after_a_restart(session):
    """New ranks have nothing."""
    node = Node(value=1)
    session.submit(keep, it=node).result()
    session.restart()
    assert session.submit(lambda found: found.value, node).result() == [1, 1]
    session.submit(keep, it=node).result()
    assert all_of(session.submit(is_kept, "it", node))


@with_children_only
def test_what_cannot_travel_any_more(session):
    """An object that the ranks have need not travel: what is in it now does not matter."""
    node = Node()
    session.submit(keep, it=node).result()
    with open(os.devnull) as node.file:
        assert all_of(session.submit(is_kept, "it", node))
        assert all_of(session.submit(lambda found: is_kept("it", found[0]), [node]))


def test_copies_that_are_pulled(session, main_as_before):  # noqa: F811  # the fixture
    """One that is bound under the same name replaces what the ranks have, and that is said."""
    main = main_namespace()
    main["node"] = Node(rows=[1])
    run_in_main(session, "keep(kept=node)")
    main["other"] = session.pull("node", rank=1)
    run_in_main(session, "other.rows.append(node.rows)")
    main["node"] = session.pull("node", rank=1)
    with pytest.warns(RuntimeWarning, match="'node' is a copy that was pulled"):
        run_in_main(session, "node.rows.append(2)")
    run_in_main(session, "node.rows.append(3)")
    session.push(node=session.pull("node", rank=1))
    assert run_in_main(session, "return node.rows") == [[1, 2, 3]] * 2


def test_results_are_copies(session):
    """What comes back is the caller's; what is pushed is the ranks' own."""
    node = Node(value=[1])
    session.submit(keep, it=node).result()
    session.push(pushed=node)
    assert all_of(session.submit(lambda: is_kept("it", vars(sys.modules["__main__"])["pushed"])))
    assert session.pull("pushed", rank=1).value == [1]
    assert session.pull("pushed", rank=1) is not node


# --- what the ranks have made themselves ---

MADE = "made, made.a, made.a[0], made.b['x'], row"


@with_the_caller
def test_what_all_ranks_have_made(session):
    """The caller's is one of them: what reaches it finds each rank's own."""
    session.run_cell("import types")
    session.run_cell("made = types.SimpleNamespace(a=[[1]], b={'x': {2}}); row = [3]")

    def look(found):
        own = eval(MADE, vars(sys.modules["__main__"]))
        return [found[0] is made for made in own]

    for place, given in enumerate(eval(MADE, vars(sys.modules["__main__"]))):
        assert session.submit(look, [given]).result() == [[n == place for n in range(5)]] * 2


@with_the_caller
def test_what_ranks_have_not_made_alike(session):
    """The thing itself is each rank's own; of its parts nobody can say which is which."""
    session.run_cell("import os")
    session.run_cell("made = [[0], [1]] if os.environ['RANK'] == '0' else [[0]]")
    main = vars(sys.modules["__main__"])

    def look(found):
        return found is main_namespace()["made"]

    assert all_of(session.submit(look, main["made"]))
    with pytest.warns(RuntimeWarning, match="under the name 'made' is not built alike on all"):
        assert session.submit(look, main["made"][1]).result() == [False, False]


@with_the_caller
def test_push_of_what_the_ranks_have(session):
    """It changes nothing for them, and a warning says so."""
    main = vars(sys.modules["__main__"])
    exec("numbers = [1]\ndef look(): return list(numbers)", main)
    session.submit(main["look"]).result()
    main["numbers"].append(2)
    with pytest.warns(RuntimeWarning, match="the ranks have 'numbers' already"):
        session.push(numbers=main["numbers"])
    assert session.submit(main["look"]).result() == [[1, 2], [1]]
    session.push(numbers=list(main["numbers"]))
    assert session.submit(main["look"]).result() == [[1, 2], [1, 2]]


# --- nothing is held ---


def test_what_the_caller_lets_go_is_gone(session):
    """Also what is in lists, and in cycles, at once; the ranks may keep theirs."""
    node = Node(items=[Node()], inner={"deep": [Node()]})
    node.items.append(node)
    seen = [weakref.ref(found) for found in (node, node.items[0], node.inner["deep"][0])]
    apart = Node(one=[Node()])
    there = weakref.ref(apart.one[0])
    session.submit(keep, it=node, apart=apart).result()
    if session.ranks[0].pid == os.getpid():
        keep()  # the caller's own rank has kept the caller's own
    del apart
    assert there() is None
    del node
    gc.collect()
    assert [found() for found in seen] == [None] * 3
    names = session._open.standing.names.objects
    session.submit(int).result()
    assert not any(isinstance(known(), Node) for known in names._known.values())


@pytest.mark.parametrize("made", ["there", "here"])
def test_what_a_cell_deletes_is_gone(session, made):
    """Its memory is free for what comes next in that cell, also if it was in a list."""
    main = vars(sys.modules["__main__"])
    setup = "class Big: pass\nbig = [[Big()], {'a': Big()}]"
    if made == "here":
        exec(setup, main)
        exec("def look(): return len(big)", main)
        session.submit(main["look"]).result()
    else:
        session.run_cell(setup)
    cell = "import weakref\nseen = [weakref.ref(big[0][0]), weakref.ref(big[1]['a'])]\ndel big\n"
    found = session.run_cell(cell + "[found() is None for found in seen]")
    assert found[1] == [True, True]


def test_many_calls_leave_nothing(session):
    """The tables do not grow with what has come and gone."""
    objects = session._open.standing.names.objects

    def size():
        return len(objects._known), len(objects._held), len(objects._ids), len(objects._dropped)

    def theirs():
        found = [obj for obj in gc.get_objects() if type(obj).__name__ == "Arrived"]
        return [len(found[0]._own), len(found[0]._held)] if found else [0, 0]

    sizes = []
    for _ in range(3):
        for _ in range(50):
            session.submit(len, [Node(), {"a": [1]}, Slotted()]).result()
        sizes.append((size(), session.submit(theirs).result()))
    assert sizes[1] == sizes[2]


def test_who_holds_alone():
    """An object that somebody else has is not among those that are let go."""
    travelled = Travelled(1)
    mine = [1]
    memo = {id(mine): (0, mine)}
    travelled.note(memo, 1)
    memo.clear()
    travelled.forget_unheld()
    assert travelled
    del mine
    assert nobody_else_holds(travelled._held)
    travelled.forget_unheld()
    assert not travelled


# --- at random ---


class World:
    """What the caller knows that the ranks have: the test's own account."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.nodes = [Node(items=[], name=number) for number in range(6)]
        self.kept = set()

    def step(self, session):
        """Send one or two nodes in some way, and let the ranks keep or let go of something."""
        choose = self.random
        sent = choose.sample(range(len(self.nodes)), choose.choice([1, 2]))
        ways = [choose.choice(WAYS) for _ in sent]
        given = [way(self.nodes[number]) for way, number in zip(ways, sent, strict=True)]
        keeps, drops = set(), set()
        if choose.random() < 0.3 and ways[0] is not ITS_LIST:
            keeps = set(sent[:1])
        elif choose.random() < 0.3:
            drops = {number for number in self.kept if choose.random() < 0.5}
        expected = [(number in self.kept) for number in sent]
        future = session.submit(look_and_keep, given, sorted(keeps), sorted(drops))
        self.kept = (self.kept | keeps) - drops
        return future, expected


def ITS_LIST(node):  # noqa: N802  # a constant
    """Send what belongs to a node instead of it."""
    return node.items


WAYS = [
    lambda node: node,
    lambda node: [node],
    lambda node: {"a": (node,)},
    lambda node: Node(inner=node),
    lambda node: partial(print, node),
    ITS_LIST,
]


def look_and_keep(given, keeps, drops):
    """Return, of each that was given, whether it is what this rank has kept; keep, or let go."""
    mine = faulty_ranks.__dict__.setdefault("mine", {})
    found = [whose(one, mine) for one in given]
    for one in given:
        node = node_of(one)
        if node is not None and node.name in keeps:
            mine[node.name] = node
    for name in drops:
        del mine[name]
    return found


def node_of(given):
    """Return the node in what came by one of the ways; None: it was its list."""
    if isinstance(given, (Node, partial)):
        inner = getattr(given, "inner", given)
        return inner.args[0] if isinstance(inner, partial) else inner
    if isinstance(given, dict):
        return given["a"][0]
    return given[0] if given else None


def whose(given, mine):
    """Return whether it is one of `mine`."""
    node = node_of(given)
    if node is None:
        return any(given is one.items for one in mine.values())
    return any(node is one for one in mine.values())


@with_children_only
@pytest.mark.parametrize("seed", range(6))
def test_at_random(session, seed):
    """Calls one by one: what a rank has kept is that object, and all else comes anew."""
    world = World(seed)
    for _ in range(60):
        future, expected = world.step(session)
        assert future.result() == [expected] * 2, (seed, expected)


@with_children_only
@pytest.mark.parametrize("seed", range(6))
def test_at_random_while_calls_wait(session, seed):
    """The same with many calls on their way."""
    world = World(100 + seed)
    for _ in range(6):
        steps = [world.step(session) for _ in range(10)]
        for future, expected in steps:
            assert future.result() == [expected] * 2, (seed, expected)


# --- in a process group ---


def test_training_in_a_session_is_that_of_torchrun(tmp_path):
    """Number for number: the notebook binds optimizers and a scheduler between the ranks' steps."""
    pytest.importorskip("torch")
    program = str(HERE / "train_in_steps.py")
    torchrun = result_by_torchrun(tmp_path, program)
    assert torchrun[0] != torchrun[1]  # the losses are each rank's own
    assert torchrun[0][:-1] == torchrun[1][:-1]
    assert result_of_program(tmp_path, program, "0") == torchrun
    assert result_of_program(tmp_path, program, "null") == torchrun


TENSORS = """\
import os
import torch
from rankexec import RankedExecutor

weights = torch.zeros(4)
module = torch.nn.Linear(2, 2)

with RankedExecutor(2, caller_rank={caller_rank}, gather=True).session() as session:
    session.submit(lambda: (weights.sum(), module.weight)).result()
    view, bias = weights[1:3], module.bias

    def write():
        view.fill_(int(os.environ["RANK"]) + 1)
        with torch.no_grad():
            bias.fill_(5)
        return weights.tolist(), module.bias.tolist()

    print(session.submit(write).result())
    ema = torch.optim.swa_utils.AveragedModel(module)
    print(session.submit(lambda: ema.module.weight is not module.weight).result())
    print(session.submit(lambda same: same is module, module).result())
    session.push(pushed=[module.weight])
    print(session.submit(lambda: pushed[0] is module.weight).result())
"""


@pytest.mark.parametrize("caller_rank", [0, None])
def test_tensors_and_their_storages(tmp_path, caller_rank):
    """A view of a tensor that the ranks have is one of theirs; a copy is one."""
    pytest.importorskip("torch")
    out = run_script(tmp_path, TENSORS.format(caller_rank=caller_rank))
    ranks = [([0.0, n, n, 0.0], [5.0, 5.0]) for n in (1.0, 2.0)]
    assert out == f"{ranks}\n" + "[True, True]\n" * 3


HOOKS = """\
import torch
from rankexec import RankedExecutor

module = torch.nn.Linear(1, 1)
module.register_forward_hook(lambda *given: given[2] * 0)

with RankedExecutor(2, caller_rank={caller_rank}, gather=True).session() as session:

    def add():
        module.register_forward_hook(lambda *given: None)
        return module(torch.ones(1)).abs().item(), len(module._forward_hooks)

    print(session.submit(add).result())
"""


@pytest.mark.parametrize("caller_rank", [0, None])
def test_hooks_of_ranks_replace_none_that_came(tmp_path, caller_rank):
    """Torch counts them in each process, and a rank would begin where the caller has."""
    pytest.importorskip("torch")
    out = run_script(tmp_path, HOOKS.format(caller_rank=caller_rank))
    assert out == f"{[(0.0, 2)] * 2}\n"
