"""Which `__main__` ranks have: of scripts however they are run, and of processes in ranks."""

from __future__ import annotations

import sys

import pytest
from helpers import run_python, run_script

SCRIPT = """\
import dataclasses, pickle, sys
from rankexec import RankedExecutor

scale = 3

@dataclasses.dataclass
class Point:
    x: int

class Failed(Exception):
    pass

def helper(point):
    return Point(point.x * scale)

def work(point):
    global counter
    counter = point.x
    return helper(point)

def fail():
    raise Failed("no")

def by_name():
    return type(pickle.loads(pickle.dumps(Point(1)))) is Point

def needed():
    return sys.modules["__main__"].scale

if __name__ == "__main__":
    module = sys.modules["__main__"]
    for caller_rank in (0, None):
        with RankedExecutor(2, gather=True, caller_rank=caller_rank) as executor:
            points = executor.submit(work, Point(2)).result()
            print(points == [Point(6), Point(6)], {type(point) is Point for point in points})
            print(type(executor.options(caller_rank=None).submit(fail).exception()) is Failed)
            print(executor.submit(by_name).result())
            print(executor.options(need="scale").submit(needed).result() == [3, 3])
    with RankedExecutor(2, gather=True) as executor, executor.session() as session:
        print(session.submit(work, Point(3)).result() == [Point(9), Point(9)], counter)
        print(session.run_cell("counter, scale"))
    print(sys.modules["__main__"] is module)
"""
SAID = "True {True}\nTrue\n[True, True]\nTrue\n" * 2 + "True 3\n[(3, 3), (3, 3)]\nTrue\n"
WAYS = {
    "by itself": ["script.py"],
    "cProfile": ["-m", "cProfile", "-o", "profile", "script.py"],
    "profile": ["-m", "profile", "-o", "profile", "script.py"],
    "trace": ["-m", "trace", "--count", "-C", "counts", "--ignore-dir", sys.prefix, "script.py"],
    "pdb": ["-m", "pdb", "-c", "continue", "-c", "quit", "script.py"],
    "runpy": ["-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"],
    "exec": ["-c", "exec(open('script.py').read(), {'__name__': '__main__'})"],
    "without a spec": ["-c", "del __spec__; exec(open('script.py').read())"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_script(tmp_path, way) -> None:
    """What it defines is its own, in whatever namespace it runs."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python(WAYS[way], tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith(("True", "[", "False"))]
    assert said == SAID.splitlines(), done.stdout + done.stderr


IN_A_PACKAGE = """\
from rankexec import RankedExecutor

def train():
    from .model import width
    from . import model
    return width + model.width

def named():
    return __package__, __spec__.name, __name__, __file__.rpartition("/")[2]

class Trainer:
    def fit(self):
        from .model import width
        return width

if __name__ == "__main__":
    for caller_rank in (0, None):
        with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
            with executor.session() as session:
                for runs in (executor, session):
                    for fn in (train, Trainer().fit, named):
                        print(*sorted(set(runs.submit(fn).result())))
"""


@pytest.mark.parametrize("module", ["train", "__main__"])
def test_a_module_of_a_package(tmp_path, module) -> None:
    """It imports relatively, and knows its own names, on every rank."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.py").write_text("width = 3\n")
    (package / f"{module}.py").write_text(IN_A_PACKAGE)
    run = "package" if module == "__main__" else f"package.{module}"
    done = run_python(["-m", run], tmp_path)
    assert done.stderr == ""
    names = ("package", f"package.{module}", "__main__", f"{module}.py")
    assert done.stdout == f"6\n3\n{names}\n" * 4


IN_RANKS = """\
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from rankexec import RankedExecutor

class Point:
    def __init__(self, x):
        self.x = x

def square(point):
    return Point(point.x**2)

def futures(method):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        points = list(pool.map(square, [Point(2), Point(3)]))
    return [type(point) is Point and point.x for point in points]

def pool(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return [type(point) is Point and point.x for point in pool.map(square, [Point(2)])]

def default():
    return multiprocessing.get_start_method()

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for caller_rank in (0, None):
        with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
            for method in ("fork", "spawn", "forkserver"):
                print(executor.submit(futures, method).result(), end=" ")
                print(executor.submit(pool, method).result())
            print(executor.submit(default).result())
"""


def test_processes_in_ranks(tmp_path) -> None:
    """They find what the script defines, by every start method; the caller's is the default."""
    line = "[[4, 9], [4, 9]] [[4], [4]]\n"
    assert run_script(tmp_path, IN_RANKS) == (line * 3 + "['spawn', 'spawn']\n") * 2


IN_A_WORKER = """\
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from rankexec import RankedExecutor

scale = 2

class Point:
    def __init__(self, x):
        self.x = x

def rank():
    return int(os.environ["RANK"]) * scale

def use(point):
    return Point(point.x + scale)

def trial(caller_rank):
    found = []
    with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
        with executor.session() as session:
            for runs in (executor, session):
                found.append(runs.submit(rank).result())
                points = runs.submit(use, Point(1)).result()
                found.append([type(point) is Point and point.x for point in points])
                found.append(runs.submit(lambda: Point(scale).x).result())
    return found

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            for caller_rank in (0, None):
                print(pool.submit(trial, caller_rank).result())
"""


def test_executor_in_a_worker(tmp_path) -> None:
    """In a process that was spawned, what the script defines travels as in the first."""
    found = [[0, 2], [3, 3], [2, 2]] * 2
    assert run_script(tmp_path, IN_A_WORKER) == f"{found}\n" * 6


def test_a_script_without_a_guard(tmp_path) -> None:
    """A worker that a rank spawns would start a gang while it imports the script, and so on."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from rankexec import RankedExecutor\n"
        "def spawn():\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
        "        return pool.submit(int).result()\n"
        "executor = RankedExecutor(1, caller_rank=None)\n"
        "print(type(executor.submit(spawn).exception()).__name__)\n"
    )
    done = run_python([str(script)], tmp_path)
    assert done.stdout == "BrokenProcessPool\n"
    assert "RuntimeError: a gang was about to be started by a process that" in done.stderr
    assert "below: if __name__ == '__main__':" in done.stderr
