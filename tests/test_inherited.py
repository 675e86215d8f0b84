"""What a rank has of the caller's process: each row of the guide's table."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

import inherited_rows
import pytest
from helpers import run_python, run_script
from inherited_rows import KEPT, KEPT_OF_TORCH, TAKEN, TAKEN_OF_TORCH

OTHERS = {
    "user, groups, capabilities, system call filters": "test_groups",
    "root directory (`chroot`)": "test_root_directory",
    "`-O`, `-W`, `-X`": "test_interpreter_options",
    "hash seed (order of sets)": "test_hash_seed",
    "random generators": "test_random_generators",
}
"""Rows with a program of their own."""


@pytest.fixture(scope="module")
def seen(pytestconfig, tmp_path_factory):
    """Run the program `inherited_rows` once for each kind of rows, when it is asked for."""
    launcher = pytestconfig.getoption("launcher")

    @lru_cache
    def see(kind: str) -> tuple[list, dict, list, list]:
        if kind == "torch" and importlib.util.find_spec("torch") is None:
            pytest.skip("needs torch")
        folder = tmp_path_factory.mktemp("inherited")
        # What pytest itself may have been told.
        env = {"TZ": "UTC", "TORCH_DISTRIBUTED_DEBUG": "OFF", "PYTHONWARNINGS": ""}
        done = run_python([inherited_rows.__file__, launcher, kind], folder, env=env, timeout=150)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return see


def look_at(seen, kind, row):
    """Return what ranks had before, what the caller has then, and what they have then."""
    before, caller, after, refused = seen(kind)
    if row in refused:
        pytest.skip("the system does not let this process change it")
    (had,), (has,) = ({json.dumps(rank[row]) for rank in ranks} for ranks in (before, after))
    return had, json.dumps(caller[row]), has


@pytest.mark.parametrize("row", [*TAKEN, *TAKEN_OF_TORCH])
def test_what_is_taken_over(seen, row):
    """Ranks have what the caller has at `submit`, also those that were forked before."""
    had, callers, has = look_at(seen, "plain" if row in TAKEN else "torch", row)
    assert has == callers
    assert had != callers or row == "CPU affinity", "nothing was changed"  # there may be one core


@pytest.mark.parametrize("row", [*KEPT, *KEPT_OF_TORCH])
def test_what_is_not(seen, row):
    """Ranks have what they would have if the caller had changed nothing."""
    had, callers, has = look_at(seen, "plain" if row in KEPT else "torch", row)
    assert has == had
    assert callers != has


BEGIN = """
import os, sys
from rankexec import RankedExecutor
from inherited_rows import launcher_of

def ids():
    return os.getresuid(), os.getresgid(), os.getgroups(), os.getppid()

def gang(world_size=2):
    launcher = launcher_of({launcher!r})
    return RankedExecutor(world_size, caller_rank=None, gather=True, launcher=launcher)
"""

GROUPS = """
import psutil
with gang() as executor:
    helpers = [set(), set()]
    for round in range(2):
        for rank in executor.submit(ids).result():
            print(rank[:3] == ids()[:3])
            helpers[round].add(rank[3])
        if round == 0:
            {change}
    print(len(helpers[0] | helpers[1]), [psutil.pid_exists(pid) for pid in helpers[0]])
print(len(psutil.Process().children()))
"""
CHANGES = {
    "groups": "os.setgroups([12345])",
    "group": "os.setresgid(12345, 12345, 12345)",
    "user": "os.chdir('/'); os.setgroups([]); os.setresgid(65534, 65534, 65534)\n"
    "            os.setresuid(65534, 65534, 65534)",
    "capabilities": "assert ctypes.CDLL(None).prctl(24, 31) == 0  # from the bounding set",
}


@pytest.mark.skipif("os.geteuid() != 0", reason="only root may change them")
@pytest.mark.parametrize("what", CHANGES)
def test_groups(tmp_path, pytestconfig, what):
    """Ranks are who the caller is, by another helper process; the first one is ended."""
    if what == "user" and not others_may_run():
        pytest.skip("another user may not run this Python")
    begin = "import ctypes" + BEGIN.format(launcher=pytestconfig.getoption("launcher"))
    printed = run_script(tmp_path, begin + GROUPS.format(change=CHANGES[what]))
    assert printed == "True\n" * 4 + "2 [False]\n0\n"


def others_may_run() -> bool:
    """Return whether anybody may run this Python, and read what is installed for it."""
    code = "import os; os.setuid(65534); os.execv({0!r}, [{0!r}, '-c', 'import rankexec'])"
    folder = Path(__file__).parent
    done = run_python(["-c", code.format(sys.executable)], folder)
    return done.returncode == 0


@pytest.mark.skipif("os.geteuid() != 0", reason="only root may change it")
def test_root_directory(tmp_path, pytestconfig):
    """Nothing runs outside it: without a Python in there, there is an error."""
    source = """
with gang() as executor:
    executor.submit(ids).result()
    os.mkdir("root")
    os.chroot("root")
    os.chdir("/")
    try:
        print(executor.submit(ids).result())
    except FileNotFoundError:
        print("missing")
"""
    begin = BEGIN.format(launcher=pytestconfig.getoption("launcher"))
    assert run_script(tmp_path, begin + source) == "missing\n"


def test_interpreter_options(tmp_path, pytestconfig):
    """Ranks run with the caller's."""
    source = """
import faulthandler
def options():
    return sys.flags.optimize, sys.warnoptions, faulthandler.is_enabled()

with gang() as executor:
    print(executor.submit(options).result() == [options()] * 2, options())
"""
    script = tmp_path / "script.py"
    script.write_text(BEGIN.format(launcher=pytestconfig.getoption("launcher")) + source)
    options = ["-O", "-W", "ignore::FutureWarning", "-X", "faulthandler"]
    done = run_python([*options, str(script)], tmp_path, env={"PYTHONWARNINGS": ""})
    assert (done.stderr, done.stdout) == ("", "True (1, ['ignore::FutureWarning'], True)\n")


@pytest.mark.parametrize("seed", ["", "7"])
def test_hash_seed(tmp_path, pytestconfig, seed):
    """Forked ranks share one; interpreters have one each; `PYTHONHASHSEED` holds everywhere."""
    source = """
with gang() as executor:
    ranks = executor.submit(hash, "rankexec").result() + executor.submit(hash, "rankexec").result()
print(len(set(ranks)), hash("rankexec") in ranks)
"""
    launcher = pytestconfig.getoption("launcher")
    printed = run_script(tmp_path, BEGIN.format(launcher=launcher) + source, env=seed_of(seed))
    alone = "4 False\n" if launcher == "spawn" else "1 False\n"
    assert printed == (alone if not seed else "1 True\n")


def seed_of(seed: str) -> dict[str, str]:
    """Return what sets it, or unsets what tox sets."""
    return {"PYTHONHASHSEED": seed or "random"}


def test_random_generators(tmp_path, pytestconfig):
    """Each rank's are its own, whatever the caller has seeded."""
    source = """
import random
random.seed(1)
expected = random.random()
random.seed(1)
with gang(3) as executor:
    drawn = executor.submit(random.random).result() + executor.submit(random.random).result()
print(len({*drawn, expected}))
"""
    begin = BEGIN.format(launcher=pytestconfig.getoption("launcher"))
    assert run_script(tmp_path, begin + source) == "7\n"


RAISED = """
import os, resource
from rankexec._gang.surroundings import surroundings, take_over

number = resource.RLIMIT_NOFILE
resource.setrlimit(number, (300, 400))
os.nice(3)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
own = surroundings()
for limit in ((500, 600), (350, 600), (-1, -1), (200, 390)):
    take_over(own._replace(limits={number: limit}, nice=0))
    print(resource.getrlimit(number), os.nice(0))
"""


def test_limit_that_was_raised(tmp_path):
    """What a rank may not raise again is left where it is, the soft limit as near as can be."""
    assert (
        run_script(tmp_path, RAISED) == "(400, 400) 3\n(350, 400) 3\n(400, 400) 3\n(200, 390) 3\n"
    )


def test_affinity_of_the_thread_that_submits(tmp_path, pytestconfig):
    """It is that thread's, and counts for how many threads ranks have."""
    source = """
import threading

def look():
    return sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]

def submit():
    os.sched_setaffinity(0, one)
    print(executor.submit(look).result() == [(sorted(one), "1")])

every = os.sched_getaffinity(0)
one = {min(every)}
with gang(1) as executor:
    for _ in range(2):
        print(executor.submit(look).result() == [(sorted(every), str(len(every)))])
        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()
"""
    begin = BEGIN.format(launcher=pytestconfig.getoption("launcher"))
    env = {"LOKY_MAX_CPU_COUNT": str(len(os.sched_getaffinity(0)))}
    begin = "import os; os.environ.pop('OMP_NUM_THREADS', None)" + begin
    assert run_script(tmp_path, begin + source, env=env) == "True\n" * 4


def test_every_line_is_a_test():
    """The guide's table has the rows that are tested, each with its test."""
    guide = Path(__file__).resolve().parent.parent / "docs" / "guide.md"
    section = guide.read_text("utf-8").partition("## What a rank has of the caller's process")[2]
    lines = section.partition("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    shown = {row[0]: re.sub(r".*::(\w+)`", r"\1", row[-1]) for row in rows if "::" in row[-1]}
    taken = dict.fromkeys([*TAKEN, *TAKEN_OF_TORCH], "test_what_is_taken_over")
    kept = dict.fromkeys([*KEPT, *KEPT_OF_TORCH], "test_what_is_not")
    assert shown == {**taken, **kept, **OTHERS}
