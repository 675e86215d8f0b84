"""`rankexec.mpify`: every usage that mpify documents, and what becomes of its faults.

What is written in cells of a notebook is the `__main__` of a script here.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager
from functools import partial, wraps

import psutil
import pytest
from helpers import is_running, run_python, run_script, wait_until, whole_lines

from rankexec import GangTimeout, NotShippable, RankDied, RankedExecutor
from rankexec.mpify import TorchDDPCtx, global_imports, import_star, in_torchddp, ranch

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
every_caller_rank = pytest.mark.parametrize("caller_rank", [0, 1, None])


@pytest.fixture
def main(monkeypatch):
    """Names in the caller's `__main__`, for the time of a test."""
    module = sys.modules["__main__"]
    monkeypatch.setattr(module, "path", "/data", raising=False)
    monkeypatch.setattr(module, "is_cat", str.isupper, raising=False)
    before = set(vars(module))
    yield module
    for name in set(vars(module)) - before:
        delattr(module, name)


def local_rank():
    """Return this rank, as mpify tells it."""
    return int(os.environ["LOCAL_RANK"])


# --- names ---


def test_star_import(tmp_path):
    """A star brings mpify's five names and nothing else; `import rankexec` alone, none of them."""
    script = """
import sys, rankexec
assert "rankexec.mpify" not in sys.modules
before = set(globals())
from rankexec.mpify import *
print(sorted(set(globals()) - before - {"before"}), "torch" in sys.modules)
"""
    names = ["TorchDDPCtx", "global_imports", "import_star", "in_torchddp", "ranch"]
    assert run_script(tmp_path, script) == f"{names} False\n"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (ranch, "nprocs, fn, *args, caller_rank=0, gather=True, ctx=None, need='', imports='', **"),
        (
            in_torchddp,
            "nprocs, fn, *args, world_size=None, base_rank=0, ctx=None, use_gpu=True, need=''",
        ),
        (import_star, "modules, ns=None"),
        (global_imports, "imports, ns=None"),
        (
            TorchDDPCtx,
            "*, world_size=None, base_rank=0, use_gpu=True, addr='127.0.0.1', port=29500",
        ),
    ],
)
def test_signatures(function, parameters):
    """They are mpify's, except that a context does not swallow what it does not know."""
    shown = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in shown]
    assert str(inspect.Signature(bare)).startswith(f"({parameters}")


# --- ranch: arguments, results, the environment ---


def report(*args, **kwargs):
    """Return what this rank was given, and what it finds."""
    rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return {"local_rank": rank, "local_ws": size, "pid": os.getpid(), "_args": args, **kwargs}


@pytest.mark.parametrize(("nprocs", "caller_rank"), [(1, 0), (1, None), (3, 0), (3, 2), (3, None)])
@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("arg_1", 20, "arg_3"), {"a": "foo", "b": "goo", "c": 100})]
)
def test_every_rank_gets_arguments_and_environment(nprocs, caller_rank, args, kwargs):
    """A list by rank; the caller's rank is the caller, each other one a process of its own."""
    found = ranch(
        nprocs, report, *args, caller_rank=caller_rank, gather=True, imports="import os", **kwargs
    )
    assert type(found) is list
    assert [one["local_rank"] for one in found] == list(range(nprocs))
    assert {one["local_ws"] for one in found} == {nprocs}
    assert len({one["pid"] for one in found}) == nprocs
    here = [rank for rank, one in enumerate(found) if one["pid"] == os.getpid()]
    assert here == ([] if caller_rank is None else [caller_rank])
    for one in found:
        assert one["_args"] == args
        assert {name: one[name] for name in kwargs} == kwargs


def test_arguments_by_keyword():
    """`nprocs` and `fn` may be named."""
    assert ranch(nprocs=2, fn=local_rank) == [0, 1]


def test_gather_is_the_default():
    """Without a word all values come back."""
    assert ranch(3, local_rank) == [0, 1, 2]


@every_caller_rank
def test_gather_false(caller_rank):
    """The value of the caller's rank, whichever it is; None if it has none."""
    assert ranch(2, local_rank, caller_rank=caller_rank, gather=False) == caller_rank


@every_caller_rank
def test_value_that_nobody_asked_for(caller_rank):
    """It does not have to travel; the caller's own is the very object."""

    def make_what_cannot_be_pickled():
        return threading.current_thread(), (n for n in range(3))

    found = ranch(2, make_what_cannot_be_pickled, caller_rank=caller_rank, gather=False)
    if caller_rank is None:
        assert found is None
    else:
        assert found[0] is threading.current_thread()
        assert list(found[1]) == [0, 1, 2]


def test_value_that_was_asked_for_and_cannot_travel():
    """It is an error, and not None in the list."""
    with pytest.raises(NotShippable, match="result of rank 1"):
        ranch(2, lambda: (n for n in range(3)))


class Adder:
    """A callable that is no function."""

    def __init__(self, start):
        self.start = start

    def __call__(self, *, more):
        """Add."""
        return self.start + local_rank() + more

    def method(self, more):
        """Do the same."""
        return self(more=more)


def doubling(fn):
    """Decorate a function, with its name kept."""

    @wraps(fn)
    def new_fn(*args, **kwargs):
        return 2 * fn(local_rank(), *args, **kwargs)

    return new_fn


@doubling
def decorated(rank, *, more):
    """Be called with a rank, by the decorator."""
    return rank + more


TARGETS = {
    "lambda": lambda more: local_rank() + more,
    "instance": Adder(1),
    "method": Adder(1).method,
    "partial": partial(lambda start, more: start + local_rank() + more, 1),
    "decorated": decorated,
    "class": type("Rank", (), {"__init__": lambda self, more: setattr(self, "more", more)}),
    "builtin": dict,
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("caller_rank", [0, 1])
def test_targets(kind, caller_rank):
    """Whatever can be called can be the function, with its value gathered or not."""
    call = partial(ranch, 2, TARGETS[kind], caller_rank=caller_rank, more=10)
    found = call()[caller_rank], call(gather=False)
    if kind == "class":
        assert [one.more for one in found] == [10, 10]
        return
    start = {"instance": 1, "method": 1, "partial": 1}.get(kind, 0)
    value = 10 + caller_rank + start
    expected = {"decorated": 2 * value, "builtin": {"more": 10}}.get(kind, value)
    assert found == (expected, expected)


def test_nested_functions_as_target():
    """Closures travel, with functions that travel as arguments."""

    def scaled(factor):
        def fn(inner, *rest):
            return factor * inner(*rest)

        return fn

    assert ranch(2, scaled(3), lambda a, b: a + b, 1, 2) == [9, 9]


def test_callers_objects_are_its_own():
    """What the function does to an argument in the caller's rank stays done."""
    seen = []
    ranch(2, lambda: seen.append(local_rank()))
    ranch(2, lambda where: where.append(local_rank()), seen, caller_rank=1)
    assert seen == [0, 1]


def test_all_have_ended():
    """It comes back when every process of the call has ended."""
    pids = ranch(3, os.getpid, caller_rank=None)
    assert [pid for pid in pids if psutil.pid_exists(pid) and is_running(pid)] == []


# --- ranch: need=, imports=, import_star ---


@every_caller_rank
@pytest.mark.parametrize("need", ["path is_cat", "path,is_cat", " path, is_cat "])
def test_need(main, caller_rank, need):
    """Objects go by name into every rank's `__main__`."""

    def look():
        module = sys.modules["__main__"]
        return module.path, module.is_cat("A")

    assert ranch(2, look, caller_rank=caller_rank, need=need) == [("/data", True)] * 2


def test_need_what_is_not_there():
    """It is named before anything starts."""
    with pytest.raises(NameError, match="img2pose"):
        ranch(2, local_rank, need="img2pose")


IMPORTS = """
    import fractions, decimal as exact   # several, and `as`
    from os import path as p
    from json import *
    from math import (floor,
        ceil as up)
"""


@every_caller_rank
def test_imports(main, caller_rank):
    """Every rank's `__main__` has them, from the first line of the function on."""

    def look():
        module = sys.modules["__main__"]
        half = module.fractions.Fraction(1, 2), module.exact.Decimal("0.5")
        return half, module.p.basename("a/b"), module.dumps([]), module.floor(0.5), module.up(0.5)

    found = ranch(2, look, caller_rank=caller_rank, imports=IMPORTS)
    assert [(str(half[0]), str(half[1]), *rest) for half, *rest in found] == [
        ("1/2", "0.5", "b", "[]", 0, 1)
    ] * 2
    # The caller's keeps them, as with mpify, if the caller was a rank.
    assert hasattr(main, "fractions") == (caller_rank is not None)


def test_imports_replace_nothing_of_the_callers(main):
    """What the notebook has defined under such a name stays."""
    ranch(2, local_rank, imports="from os import path, sep")
    assert main.path == "/data"
    assert main.sep == os.sep


@pytest.mark.parametrize("call", [ranch, in_torchddp])
def test_line_that_is_no_import(main, call):
    """It is named, where mpify skipped it; nothing has run."""
    with pytest.raises(ValueError, match="does not parse: 'improt numpy as np'"):
        call(2, local_rank, imports="import fractions\nimprot numpy as np\n")
    assert not hasattr(main, "fractions")


def test_module_that_is_not_there(main):
    """The caller finds out before any rank starts."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        ranch(2, local_rank, imports="import no_such_module_anywhere")


def test_imports_and_import_star_inside_the_function(tmp_path):
    """The first README's way: pass objects, import inside, with a star by `import_star`."""
    (tmp_path / "utils.py").write_text("def tidy(x): return x + 1\n")
    (tmp_path / "fancy.py").write_text("__all__ = ['twice']\ndef twice(x): return 2 * x\n")
    script = """
import os
from rankexec.mpify import ranch

def foo(x):
    return x * 10

objectA = 100

def new_func(arg1, foo, objectA, **kwargs):
    from rankexec.mpify import import_star
    import_star(['utils', 'fancy'])
    import math as m
    return int(os.environ['RANK']), foo(tidy(twice(arg1))) + objectA + m.floor(0.5)

def dist_func(single_fn, *args, **kwargs):
    return single_fn(*args, **kwargs)

print(ranch(3, new_func, 2, foo, objectA))
print(ranch(2, dist_func, new_func, 2, foo, objectA, gather=False))
"""
    assert run_script(tmp_path, script) == f"{[(0, 150), (1, 150), (2, 150)]}\n(0, 150)\n"


# --- ranch: ctx ---


class Noting(AbstractContextManager):
    """A context of the user's: sets something up around the function."""

    def __init__(self, directory):
        self.directory = directory

    def note(self, what):
        """Leave a mark."""
        (self.directory / f"{os.environ['LOCAL_RANK']}-{what}").touch()

    def __enter__(self):
        os.environ["NOTED"] = "1"
        self.note("in")

    def __exit__(self, *exc_info):
        self.note(f"out-{exc_info[0].__name__ if exc_info[0] else None}")


@every_caller_rank
def test_ctx(tmp_path, caller_rank):
    """Each rank enters it before the function and leaves it after."""

    def look():
        return os.environ["NOTED"], sorted(os.listdir(tmp_path)).count(f"{local_rank()}-in")

    found = ranch(2, look, caller_rank=caller_rank, ctx=Noting(tmp_path))
    assert found == [("1", 1)] * 2
    marks = ["0-in", "0-out-None", "1-in", "1-out-None"]
    assert sorted(path.name for path in tmp_path.iterdir()) == marks
    assert "NOTED" not in os.environ


# --- in_torchddp, TorchDDPCtx ---


def rank_size_wrapper(fn):
    """Call a function with rank and size before its arguments, as mpify's examples do."""

    def new_fn(*args, **kwargs):
        return fn(int(os.environ.get("RANK")), int(os.environ.get("WORLD_SIZE")), *args, **kwargs)

    return new_fn


def add_ranks(rank, size):
    """Add up all ranks."""
    import torch

    tensor = torch.tensor(rank)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)
    return tensor.item(), size, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@needs_torch
def test_in_torchddp():
    """A group of all ranks, one thread each; the value is the caller's."""
    assert in_torchddp(4, rank_size_wrapper(add_ranks), use_gpu=False) == (6, 4, 1, "1")


@needs_torch
def test_ranch_with_torchddpctx():
    """The same, spelled out; the world size may be left to the gang."""
    fn = rank_size_wrapper(add_ranks)
    for ctx in (TorchDDPCtx(world_size=2, use_gpu=False), TorchDDPCtx(num_threads=2)):
        found = ranch(2, fn, ctx=ctx, gather=False)
        assert found == (1, 2, ctx.num_threads, str(ctx.num_threads))
    assert ranch(2, fn, ctx=TorchDDPCtx(), caller_rank=None) == [(1, 2, 1, "1")] * 2


@needs_torch
def test_in_torchddp_with_another_context(tmp_path):
    """`ctx` stands for the group; what it does is up to it."""

    class WithGroup(TorchDDPCtx):
        def __enter__(self):
            super().__enter__()
            (tmp_path / os.environ["RANK"]).touch()
            return self

    fn = rank_size_wrapper(add_ranks)
    assert in_torchddp(2, fn, ctx=WithGroup(world_size=2))[:2] == (1, 2)
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]
    assert in_torchddp(2, local_rank, ctx=Noting(tmp_path)) == 0


POINT_TO_POINT = """
from rankexec.mpify import in_torchddp
import os
import torch
import torch.distributed as dist

def run_blocking(rank, size):
    tensor = torch.zeros(1)
    if rank == 0:
        for r in range(1, size):
            tensor += 1
            dist.send(tensor=tensor, dst=r)
    else:
        dist.recv(tensor=tensor, src=0)
    print('Rank ', rank, ' has data ', tensor[0], flush=True)

def run_nonblocking(rank, size):
    tensor = torch.zeros(1)
    if rank == 0:
        for r in range(1, size):
            tensor = tensor + 1
            dist.isend(tensor=tensor, dst=r).wait()
    else:
        dist.irecv(tensor=tensor, src=0).wait()
    print('Rank ', rank, ' has data ', tensor[0], flush=True)

def run_allreduce(rank, size):
    tensor = torch.ones(1)
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    print('AllReduce: Rank ', rank, ' has data ', tensor[0], flush=True)

def rank_size_wrapper(fn):
    def new_fn(*args, **kwargs):
        import os
        return fn(int(os.environ.get('RANK')), int(os.environ.get('WORLD_SIZE')), *args, **kwargs)
    return new_fn

imports='''
from rankexec.mpify import in_torchddp
import os
import torch
import torch.distributed as dist
'''

if __name__ == "__main__":
    for fn in (run_blocking, run_nonblocking, run_allreduce):
        in_torchddp(3, rank_size_wrapper(fn), use_gpu=False, imports=imports)
"""


@needs_torch
def test_torch_tutorial(tmp_path):
    """The first example of mpify: torch's tutorial on point-to-point messages and all-reduce."""
    printed = whole_lines(run_script(tmp_path, POINT_TO_POINT))
    sent = [f"Rank  {rank}  has data  tensor({max(rank, 1) if rank else 2}.)" for rank in range(3)]
    added = [f"AllReduce: Rank  {rank}  has data  tensor(3.)" for rank in range(3)]
    plain = [re.sub(r"^\[rank \d\] ", "", line) for line in printed]
    assert sorted(plain) == sorted([*sent, *sent, *added])


# As mpify's fastai notebooks are written: what to train with goes in as the first argument, other
# cells' definitions by name, options of the training by keyword, state from file to file.
TRAINING = """
import torch
from pathlib import Path
path = Path('.')

def get_x(n): return torch.linspace(-1, 1, n).unsqueeze(1)

# a cell
class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, x): return self.layer(x)

def fine_tune(learn, nepochs, *args, **kwargs):
    return fit(learn, nepochs, *args, **kwargs)

def one_cycle(learn, nepochs, *args, lr_max=slice(0, 0.1), **kwargs):
    return fit(learn, nepochs, lr=lr_max.stop, **kwargs)

def fit(learn, nepochs, lr=0.1, wd=0.0):
    model = DistributedDataParallel(learn)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=wd)
    for _ in range(nepochs):
        optimizer.zero_grad()
        x = get_x(8)[dist.get_rank()::dist.get_world_size()]
        ((model(x) - 3 * x) ** 2).mean().backward()
        optimizer.step()
    return learn

def trainer(train_fn, nepochs, *args, load=None, module=Line, **kwargs):
    learn = module()
    if load:
        learn.load_state_dict(torch.load(path/load))
    learn = train_fn(learn, nepochs, *args, **kwargs)
    learn.hook = lambda: learn
    return learn

from rankexec.mpify import in_torchddp

imports='''
from torch.nn.parallel import DistributedDataParallel
import torch.distributed as dist
'''
need = "path fine_tune one_cycle"

def slope(learn): return round(learn.layer.weight.item())

# a cell
learn = in_torchddp(2, trainer, fine_tune, 0, imports=imports, need=need)
assert slope(learn) != 3 and type(learn) is Line and learn.hook() is learn
learn = in_torchddp(2, trainer, fine_tune, 200, 0.5, wd=1e-6, imports=imports, need=need)
print(type(learn).__name__, slope(learn))

# a cell: from the state of the first
torch.save(learn.state_dict(), path/'after_first')
learn = in_torchddp(2, trainer, one_cycle, 1, lr_max=slice(1e-6, 1e-3), load='after_first',
                    imports=imports, need=need)
print(type(learn).__name__, slope(learn))

# a cell: the class is defined anew, with more that it needs
def create_params(size):
    return torch.nn.Parameter(torch.zeros(*size).normal_(0, 0.01))

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = create_params([1])
    def forward(self, x): return self.weight * x

need = f"{need} create_params"
learn = in_torchddp(2, trainer, fine_tune, 200, 0.5, module=Line, imports=imports, need=need)
print([name for name, _ in learn.named_parameters()], round(learn.weight.item()))
print(dist.is_initialized())
"""


@needs_torch
@pytest.mark.slow
def test_training_in_a_notebook(tmp_path):
    """The cells of mpify's notebooks: train, save, train on, redefine, train."""
    assert run_script(tmp_path, TRAINING).splitlines() == [
        "Line 3",
        "Line 3",
        "['weight'] 3",
        "False",
    ]


# --- several hosts by hand: here two callers ---

PART = """
import os, sys
import torch, torch.distributed as dist
from rankexec.mpify import TorchDDPCtx, in_torchddp, ranch

base, port, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def look():
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    shown = [os.environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT')]
    return total.item(), shown

ctx = TorchDDPCtx(world_size=4, base_rank=base, addr='127.0.0.1', port=port, use_gpu=False)
if way == 'in_torchddp':
    print(in_torchddp(2, look, world_size=4, base_rank=base, ctx=ctx))
else:
    print(ranch(2, look, ctx=ctx, caller_rank=None))
print('RANK' in os.environ)
"""


@needs_torch
@pytest.mark.parametrize("way", ["in_torchddp", "ranch"])
def test_group_of_two_gangs(tmp_path, way):
    """Two callers' gangs are one group, by `world_size`, `base_rank`, `addr` and `port`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    printed = {}

    def run(base):
        done = run_python(["-c", PART, str(base), port, way], tmp_path)
        printed[base] = (done.stdout, done.stderr)

    second = threading.Thread(target=run, args=[2])
    second.start()
    run(0)
    second.join()
    for base, (out, err) in printed.items():
        shown = [(6, [str(base + rank), "4", str(rank), port]) for rank in range(2)]
        assert (out, err) == (f"{shown[0] if way == 'in_torchddp' else shown}\nFalse\n", "")


@pytest.mark.parametrize(
    ("options", "nprocs", "address"),
    [
        ({}, 2, None),
        ({"world_size": 2}, 2, None),
        ({"world_size": 4}, 2, ("127.0.0.1", 29500)),
        ({"world_size": 4, "base_rank": 2}, 2, ("127.0.0.1", 29500)),
        ({"port": 29501}, 2, ("127.0.0.1", 29501)),
        ({"world_size": 4, "addr": "host"}, 2, ("host", 29500)),
    ],
)
def test_address(options, nprocs, address):
    """The fixed address of mpify counts only where two callers could not meet without one."""
    assert TorchDDPCtx(**options)._address(nprocs) == address


@needs_torch
@pytest.mark.parametrize("options", [{"base_rank": 2}, {"world_size": 3, "base_rank": 2}])
def test_gang_that_does_not_fit_into_its_group(options):
    """It is refused before a rank starts."""
    with pytest.raises(ValueError, match="ranks 2 to 3 do not fit into world_size="):
        in_torchddp(2, local_rank, use_gpu=False, **options)


# --- mpify's faults ---


def fail_on(which, how):
    """Fail on one rank; the others return."""
    if local_rank() == which:
        how()
    return local_rank()


def raise_error():
    """Raise."""
    raise LookupError("on this rank")


@every_caller_rank
@pytest.mark.parametrize("gather", [True, False])
def test_failed_rank(caller_rank, gather):
    """Its exception is raised, where mpify put None into the list."""
    with pytest.raises(LookupError, match="on this rank"):
        ranch(2, fail_on, 1, raise_error, caller_rank=caller_rank, gather=gather)


def test_rank_that_dies():
    """So is its death."""
    with pytest.raises(RankDied, match="rank 1"):
        ranch(2, fail_on, 1, lambda: os._exit(3))


@pytest.mark.parametrize("fails", [False, True])
def test_environment_afterwards(fails):
    """Nothing of a call is left in os.environ, also after a failure."""
    before = dict(os.environ)

    def change():
        os.environ["RANKEXEC_TEST_NEW"] = "1"
        if fails:
            raise_error()

    try:
        ranch(2, change)
    except LookupError:
        assert fails
    assert dict(os.environ) == before


@needs_torch
def test_port_that_is_taken():
    """The fixed port of mpify may be in use: a group of one gang does not need it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 29500))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        assert in_torchddp(2, rank_size_wrapper(add_ranks), use_gpu=False)[0] == 1


def test_processes_of_ranks_end_with_them():
    """With mpify, what a rank had started lived on."""

    def start():
        import subprocess

        if local_rank():
            return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
        return None

    _, pid = ranch(2, start)
    wait_until(lambda: not is_running(pid), "the rank's process is gone")


def test_option_that_nobody_takes():
    """A slip is an error before anything starts, if the function does not take it."""
    with pytest.raises(TypeError, match="takes 'gathr'") as caught:
        ranch(2, fail_on, 1, raise_error, gathr=False)
    assert "fail_on() takes which, how; the call nprocs, caller_rank, gather" in str(caught.value)
    with pytest.raises(TypeError, match=r"takes 'usegpu'.* use_gpu, need"):
        in_torchddp(2, local_rank, usegpu=False)
    with pytest.raises(TypeError, match="takes 'which'"):
        ranch(2, lambda which, /: which, which=1)
    with pytest.raises(TypeError, match="world_sze"):
        TorchDDPCtx(world_sze=2)


@pytest.mark.parametrize("slip", ["gathr", "caller_rnk", "needs", "import_"])
def test_slip_that_the_function_takes(slip):
    """A function with `**kwargs` gets it; a warning says so."""
    with pytest.warns(RuntimeWarning, match=f"'{slip}' goes to report.*did you mean") as caught:
        assert ranch(1, report, **{slip: 1})[0][slip] == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"nprocs": 0}, ValueError, "nprocs takes an int of at least 1, got 0"),
        ({"nprocs": "2"}, TypeError, "nprocs takes an int of at least 1, got '2'"),
        ({"caller_rank": 2}, ValueError, "caller_rank takes 0 to 1, or None, got 2"),
        ({"caller_rank": -1}, ValueError, "caller_rank takes 0 to 1, or None, got -1"),
        ({"gather": 2}, TypeError, "gather takes"),
        ({"ctx": 2}, TypeError, "ctx takes"),
        ({"need": 2}, TypeError, "need takes"),
        ({"imports": 2}, TypeError, "imports takes"),
        ({"fn": 2}, TypeError, "fn takes a callable, got 2"),
        ({"fn": 2, "caller_rank": 1, "gather": False}, TypeError, "fn takes a callable, got 2"),
    ],
)
def test_wrong_arguments(options, error, says):
    """They are named before anything starts."""
    with pytest.raises(error, match=says):
        ranch(**{"nprocs": 2, "fn": local_rank, **options})


def test_ranch_inside_a_rank():
    """It is refused in clear words; with `caller_rank=None` it works."""
    with pytest.raises(RuntimeError, match="rank 0 of a gang already"):
        ranch(1, lambda: ranch(2, local_rank))
    inner = partial(ranch, 2, local_rank, caller_rank=None)
    assert ranch(1, inner) == [[0, 1]]


# --- an executor instead of a number ---


def test_on_an_executor(tmp_path):
    """Its size, its environment and its context, unless the call has another."""
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()

    def look():
        return os.environ["SET"], local_rank()

    with RankedExecutor(2, env={"SET": "1"}, ctx=Noting(tmp_path / "own")) as executor:
        assert ranch(executor, look) == [("1", 0), ("1", 1)]
        assert len(os.listdir(tmp_path / "own")) == 4
        found = ranch(executor, look, ctx=Noting(tmp_path / "other"), caller_rank=1, gather=False)
        assert found == ("1", 1)
        assert ranch(executor, look, caller_rank=None, gather=len) == 2
        assert executor.submit(look).result() == ("1", 0), "it is as it was"
    assert len(os.listdir(tmp_path / "other")) == 4


def test_time_limit():
    """With mpify the caller waited for ever; with an executor's time limit the ranks are ended."""
    with (
        RankedExecutor(2, timeout=1) as executor,
        pytest.raises(GangTimeout, match="within 1 s"),
    ):
        ranch(executor, time.sleep, 600)
