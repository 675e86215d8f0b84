"""Ddip's magics in a shell: every command and option, and whose variables are whose."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from typing import Any

import pytest
from helpers import run_cells
from test_magics import html, lines

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(
        not (importlib.util.find_spec("IPython") and importlib.util.find_spec("torch")),
        reason="needs IPython and torch",
    ),
]
BEGIN = (
    "%load_ext rankexec.ddip",
    "%makedip -g 0,1",
    # What `print` writes piece by piece, other ranks' lines may come between.
    """%%dip everywhere
import os
rank = lambda: int(os.environ['RANK'])
say = lambda x: print(f'{x}\\n', end='')
""",
)
NO_GROUP = "there is no group; %makedip -g all makes one"


@pytest.fixture
def run(tmp_path):
    """Run cells, after those that every notebook begins with; return what came of each."""

    def run(*cells: Any, begin: tuple[str, ...] = BEGIN) -> list[Any]:
        return run_cells(tmp_path, [*begin, *cells])[len(begin) :]

    return run


@pytest.fixture
def run_alone(run):
    """Run cells after the one that loads the extension."""
    return partial(run, begin=BEGIN[:1])


def errors(cells: list[dict[str, Any]]) -> list[str | None]:
    """Return the errors of cells."""
    return [cell["error"] for cell in cells]


def values(cell: dict[str, Any]) -> list[str]:
    """Return what a cell's ranks have displayed, without the headings."""
    texts = [data["text/plain"] for data in cell["shown"]]
    return [text for text in texts if not re.fullmatch(r"rank \d+:", text)]


# --- whose variables are whose ---


def test_namespaces(run) -> None:
    """What a cell sets stays on the ranks; neither side finds what the other one has."""
    here, _, there, again, mine = run(
        "x = 'mine'\nonly_here = 1",
        "%%dip\nx = [rank()]\ndef f(): return x + [1]",
        "%%dip -S all\nx += [5]\nf()",
        "%%dip\nonly_here",
        "x, 'f' in globals()",
    )
    assert values(there) == ["[0, 5, 1]", "[1, 5, 1]"]
    assert (again["error"], mine["value"]) == ("NameError", "('mine', False)")
    assert here["error"] is None


def test_push_and_pull(run) -> None:
    """Variables are copied by name: to all ranks, and from one of them, 0 unless said."""
    *_, pushed, _, zero, one, several = run(
        "numbers, name = [1, 2], 'me'\ndef twice(x): return x * 2",
        "%dipush numbers name twice",
        "%%dip -S all\nnumbers.append(rank())\nmine = rank() * 10\ntwice(numbers), name",
        "%dipull mine numbers",
        "mine, numbers",
        "%dipull -r 1 mine\nmine",
        "%dipull --rank 1 numbers mine\nmine, numbers",
    )
    assert values(pushed) == ["([1, 2, 0, 1, 2, 0], 'me')", "([1, 2, 1, 1, 2, 1], 'me')"]
    assert zero["value"] == "(0, [1, 2, 0])"
    assert (one["value"], several["value"]) == ("10", "(10, [1, 2, 1])")


def test_pull_all_or_nothing(run) -> None:
    """If the rank lacks one of the names, the notebook is as before."""
    _, error, after = run("%%dip\na = 1", "%dipull a nothing", "'a' in globals()")
    assert error["error"] == "NameError"
    assert "rank 0 has no 'nothing'" in error["text"]
    assert after["value"] == "False"


def test_what_cannot_be_pushed(run) -> None:
    """The error names it; the ranks and their variables are as before."""
    _, _, error, after = run("%%dip\na = 1", "b = (x for x in 'x')", "%dipush b", "%%dip\na")
    assert (error["error"], values(after)) == ("NotShippable", ["1"])


def test_everywhere(run) -> None:
    """First in the notebook, then on the ranks; each has a variable of its own."""
    both, mine = run("%%dip everywhere\nwho = os.environ.get('RANK')\nsay(who)\nwho or 'me'", "who")
    assert both["out"].splitlines() == ["None", "Out[4]: 'me'", "0"]
    assert values(both) == ["'0'"]
    assert mine["value"] == "None"


def test_everywhere_that_fails_in_the_notebook(run) -> None:
    """The ranks do not run the cell."""
    failed, after = run(
        "%%dip everywhere\ndone = 1\nif 'RANK' not in os.environ: 1 / 0", "%%dip\ndone"
    )
    assert errors([failed, after]) == ["ZeroDivisionError", "NameError"]


def test_local(run) -> None:
    """In the notebook only, magics and all; `-q` hides the value."""
    cell, quiet = run(
        "%%dip local\nx = !echo hi\nx, os.environ.get('RANK')", "%%dip local -q\nsay('text')\n3"
    )
    assert cell["value"] == "(['hi'], None)"
    assert (quiet["out"], quiet["value"]) == ("text\n", "None")


def test_lines_and_future_imports(run) -> None:
    """Errors name the cell's lines; `from __future__` holds for later cells of that side."""
    error, _, there, here = run(
        "%%dip\n\n1 / 0",
        "%%dip\nfrom __future__ import annotations",
        "%%dip\ndef f(x: Unknown): pass\nf.__annotations__",
        "def f(x: Unknown): pass",
    )
    assert 'File "Cell In[4]", line 3' in error["out"]
    assert values(there) == ["{'x': 'Unknown'}"]
    assert here["error"] == "NameError"


def test_the_ranks_are_in_one_group(run) -> None:
    """Joined by torch.distributed; the notebook is not."""
    cell, here = run(
        "%%dip -S all\nimport torch, torch.distributed as dist\nt = torch.ones(1) + rank()\n"
        "dist.all_reduce(t)\nt.item(), dist.get_world_size()",
        "import torch.distributed as dist\ndist.is_initialized()",
    )
    assert values(cell) == ["(3.0, 2)"] * 2
    assert here["value"] == "False"


# --- whose output is seen ---

SHOWS = (
    "from IPython.display import HTML, display\nsay('text')\ndisplay(HTML(f'<b>{rank()}</b>'))\n"
)


def test_see(run) -> None:
    """Rank 0's, unless others are named; then under a heading for each."""
    first, everybody, other, listed, silent = run(
        f"%%dip\n{SHOWS}rank() + 40",
        f"%%dip -S all\n{SHOWS}rank() + 40",
        f"%%dip --see 1\n{SHOWS}rank() + 40",
        f"%%dip -S 1 0 remote\n{SHOWS}",
        "%%dip\nrank();",
    )
    assert (first["out"], html(first), values(first)[1:]) == ("text\n", ["<b>0</b>"], ["40"])
    assert lines(everybody["out"]) == ["[rank 1] text", "text"]
    shown = ["<b>rank 0</b>", "<b>0</b>", "<b>rank 1</b>", "<b>1</b>"]
    assert html(everybody) == html(listed) == shown
    assert (other["out"], html(other)) == ("[rank 1] text\n", ["<b>rank 1</b>", "<b>1</b>"])
    assert (silent["out"], silent["shown"]) == ("", [])


LATE = """
import sys, threading
page = sys.stdout
def look():
    while not pathlib.Path('printed').exists(): time.sleep(0.01)
    page.write('meanwhile\\n')
    pathlib.Path('seen').touch()
looking = threading.Thread(target=look)
looking.start()
get_ipython().run_cell_magic('dip', '-q', "say('text')\\npathlib.Path('printed').touch()\\n"
    "while not pathlib.Path('seen').exists(): time.sleep(0.01)")
looking.join()
"""


def test_quiet(run) -> None:
    """What ranks print is shown when the cell is done, not while it runs; errors are raised."""
    cell, failed, _, late = run(
        "%%dip -q -S all\nimport sys\nsay(rank())\nprint('err', file=sys.stderr)\n7",
        "%%dip -q\nsay('before')\nif rank(): raise KeyError('k')",
        "%%dip everywhere\nimport pathlib, time",
        LATE,
    )
    assert lines(cell["out"]) == ["0", "[rank 1] 1"]
    assert lines(cell["err"]) == ["[rank 1] err", "err"]
    assert values(cell) == ["7", "7"]
    assert (failed["error"], failed["out"].startswith("before\n")) == ("KeyError", True)
    assert (late["error"], late["out"]) == (None, "meanwhile\ntext\n")


# --- failures ---


def test_a_failure_in_one_rank(run) -> None:
    """It is raised in the notebook; the ranks live on, with their variables, in a new group."""
    _, error, after, group = run(
        "%%dip\nx, pid = 5, os.getpid()",
        "%%dip\nimport torch.distributed as dist\nif rank(): raise KeyError('k')\ndist.barrier()",
        "%%dip\nx, pid == os.getpid()",
        "%%dip\ndist.barrier()\ndist.get_world_size()",
    )
    assert error["error"] == "KeyError"
    assert "raise KeyError('k')" in error["out"]
    assert values(after) == ["(5, True)"]
    assert (group["error"], values(group)) == (None, ["2"])


def test_a_rank_that_dies(run) -> None:
    """The cell says so; later ones say what to do, and a restart does it."""
    died, lost, push, _, after = run(
        "%%dip\nimport signal\nif rank(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "import time\ntime.sleep(60)",
        "%%dip\n1",
        "x = 1\n%dipush x",
        "%makedip -r",
        "%%dip -S all\nimport os\nos.environ['RANK']",
    )
    assert died["error"] == "RankDied"
    assert (lost["error"], push["error"]) == ("UsageError", "UsageError")
    assert "(%makedip -r)" in lost["text"]
    assert values(after) == ["'0'", "'1'"]


# --- the group ---


def pids(cell: dict[str, Any]) -> list[str]:
    """Return the process ids in a table that was shown."""
    _, _, *rows = cell["shown"][0]["text/plain"].splitlines()
    return [row.split()[2] for row in rows]


def test_makedip(run_alone) -> None:
    """-g makes a group, and again another; -i shows it; -r starts it anew; -k ends it."""
    none, made, info, _, again, _, cell, other, _, gone, _ = run_alone(
        "%makedip",
        "%makedip -g 0 1",
        "%makedip -i",
        "%%dip\nx = 1",
        "%makedip -r -i",
        "%%capture nothing\n%makedip",
        "%%dip\nx",
        "%makedip -g 5,3,1 -i",
        "%makedip -k",
        "%%dip\nx",
        "%makedip --kill",
    )
    assert none["out"] == f"{NO_GROUP}\nautodip: off\n"
    assert (made["out"], made["shown"]) == ("", [])
    assert info["shown"][0]["text/plain"].startswith("2 ranks, the notebook is none of them")
    assert info["out"] == "app: none\nautodip: off\n"
    assert set(pids(info)).isdisjoint(pids(again))
    assert cell["error"] == "NameError"
    assert len(pids(other)) == 3
    assert (gone["error"], gone["text"]) == ("UsageError", f"%%dip: {NO_GROUP}")


def test_as_many_as_there_are(run_alone) -> None:
    """`all` without a GPU: a rank for each CPU core that this process may use."""
    *_, cell = run_alone(
        "import os\nos.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])",
        "%makedip -g all",
        "%%dip -S all\nimport os\nos.environ['WORLD_SIZE']",
    )
    assert values(cell) == ["'1'"]


def test_any_gpus_in_any_order(run_alone) -> None:
    """As rank 0's, rank 1's; those that are not there are refused."""
    seen = "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '0,1,2,3'"
    _, _, info, cell, refused, everything = run_alone(
        seen,
        "%makedip -g 3,1",
        "%makedip -i",
        "%%dip -S all\nimport os\nos.environ['CUDA_VISIBLE_DEVICES'], os.environ['LOCAL_RANK']",
        "%makedip -g 1,7",
        "%makedip -g all -i",
    )
    rows = info["shown"][0]["text/plain"].splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["0", "3"], ["1", "1"]]
    assert values(cell) == ["('3,1', '0')", "('3,1', '1')"]
    assert refused["text"] == "%makedip -g: there is no GPU 7; there are 0,1,2,3"
    assert len(pids(everything)) == 4


def test_verbose(run_alone) -> None:
    """It says what is run where, from then on; `-v False` ends that."""
    made, here, there, push, pull, _, silent, kill = run_alone(
        "%makedip -g 0,1 -v",
        "%%dip local\nx = 1",
        "%%dip\ny = 1",
        "%dipush x",
        "%dipull y",
        "%makedip --verbose False",
        "%%dip\ny = 1",
        "%makedip -v True -k",
    )
    assert re.sub(r"\d{2,}", "N", made["out"]).splitlines() == [
        "%makedip: starts 2 ranks on the CPU, app none",
        "%makedip: rank 0 is process N",
        "%makedip: rank 1 is process N",
    ]
    assert here["out"] == "%%dip: runs the cell in the notebook\n"
    assert there["out"] == "%%dip: runs the cell on 2 ranks\n"
    assert push["out"] == "%dipush: x to 2 ranks\n"
    assert pull["out"] == "%dipull: y from rank 0\n"
    assert (silent["out"], kill["out"]) == ("", "%makedip: ends 2 ranks\n")


def test_timeout(run_alone) -> None:
    """-t is a limit for the start, and for nothing later."""
    late, none, _, cell = run_alone(
        "%makedip -g 0,1 -t 0.001",
        "%%dip\n1",
        "%makedip -g 0,1 -t 30",
        "%%dip\nimport time\ntime.sleep(0.01)",
    )
    assert (late["error"], none["text"]) == ("GangTimeout", f"%%dip: {NO_GROUP}")
    assert cell["error"] is None


def test_dipper(run) -> None:
    """The group as a session, in a variable; it is the same one after a restart."""
    *_, found, _, restarted = run(
        "%dipper group",
        "group.push(a=[3])\n[group.pull('a', 1), group.run_cell('a + a'), len(group.ranks), "
        "type(group).__name__, group.options(gather=True).submit(lambda: rank()).result()]",
        "%makedip -r",
        "group.run_cell('1 + 1')",
    )
    assert found["value"] == "[[3], [3, 3], 2, 'Session', [0, 1]]"
    assert restarted["value"] == "2"


GPU = """%%dip
import torch
class Cuda:
    calls, used = 0, 0
    def device_count(): return 0
    def is_initialized(): return True
    def memory_allocated(): return Cuda.used
    def memory_reserved(): return Cuda.used
    def max_memory_reserved(): return Cuda.used
    def empty_cache(): Cuda.calls += 1
torch.cuda = Cuda
"""


def test_gpu_memory_is_given_back(run) -> None:
    """After a cell that has changed how much is used: the first, others, one that failed."""
    _, _, used, idle, _, failed = run(
        GPU, "%%dip\nCuda.used = 7", "%%dip\nCuda.calls", "%%dip\nCuda.calls",
        "%%dip\nCuda.used = 8\n1 / 0", "%%dip\nCuda.calls",
    )  # fmt: skip
    assert (values(used), values(idle), values(failed)) == (["2"], ["2"], ["3"])


# --- apps ---

FASTAI = """%%dip -S all
import os, torch
from fastai.tabular.all import *
from fastprogress import fastprogress
state = lambda: (fastprogress.NO_BAR, hasattr(Learner.__init__, "__wrapped__"))
df = pd.DataFrame({"a": np.arange(64.0), "y": np.arange(64.0)})
dls = TabularDataLoaders.from_df(df, cont_names=["a"], y_names="y", bs=8,
                                 y_block=RegressionBlock(), seed=1)
make = lambda: tabular_learner(dls, layers=[4], loss_func=MSELossFlat())
state(), hasattr(make(), "distributed_trainer")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("fastai") and importlib.util.find_spec("accelerate")),
    reason="needs fastai and accelerate",
)
def test_fastai(run_alone) -> None:
    """Learners are distributed and rank 0 alone shows progress: until the app's end, and anew."""
    made, prepared, final, again, silent, _, after, *_, unknown = run_alone(
        "%makedip -g 0,1 -a fastai_v2 -i",
        FASTAI,
        '%%dip -S all -a finalizer\nstate(), hasattr(make(), "distributed_trainer")',
        "%%dip -S all -a initializer\nstate()",
        "%%dip -S all -a silent_console\nstate()",
        "%%dip\n1 / 0",
        "%%dip -S all\nstate()",
        "%%dip\nlearn = make()\nlearn.to_distributed() is learn, len(learn.cbs)",
        "%%dip -a nothing\n1",
    )
    assert made["out"] == "app: fastai\nautodip: off\n"
    assert values(prepared) == ["((False, True), True)", "((True, True), True)"]
    assert values(final) == ["((False, False), False)"] * 2
    assert values(again) == values(after) == ["(False, True)", "(True, True)"]
    assert values(silent) == ["(True, True)"] * 2
    assert "takes finalizer, initializer, silent_console" in unknown["text"]


# --- autodip ---


def test_autodip(run) -> None:
    """Later cells run on ranks; those that begin with a magic or the marker do not."""
    where = "say('RANK' in os.environ)"
    on, state, cell, one, marked, said, info, again, every, turned_off, off, off_state = run(
        "%autodip on",
        "%autodip",
        f"{where}\nz = 1",
        f"%%dip -S 1\n{where}",
        f"#dip_locally\n{where}",
        f"%%dip local\n{where}",
        "%makedip -i",
        '%autodip -a "--see all" on',
        f"{where}\nz",
        "%autodip off",
        f"{where}\n'z' in globals()",
        "%autodip",
    )
    assert on["out"] == state["out"] == "autodip is on: %%dip\n"
    assert again["out"] == "autodip is on: %%dip --see all\n"
    assert (cell["out"], one["out"]) == ("True\n", "[rank 1] True\n")
    assert (marked["out"], said["out"]) == ("False\n", "False\n")
    assert info["out"] == "app: none\nautodip: on: %%dip\n"
    assert (lines(every["out"]), values(every)) == (["True", "[rank 1] True"], ["1", "1"])
    assert off["value"] == "False"
    assert turned_off["out"] == off_state["out"] == "autodip is off\n"


# --- wrong use, help, the extension ---


WRONG = {
    "%makedip -g": "expected at least one argument",
    "%makedip -g one": "takes GPU ids, 0,2 or 0 2, or all; got 'one'",
    "%makedip -g ,": "takes GPU ids",
    "%makedip -g 0,0": "takes each GPU once, got 0,0",
    "%makedip -g 0 -a swift": "-a takes fastai or none, got 'swift'",
    "%makedip -a none": "it goes with -g",
    "%makedip -t 3": "it goes with -g",
    "%makedip -g 0 -t 0": "timeout takes seconds above 0",
    "%makedip -k -r": "-k ends the group: no -g or -r",
    "%makedip -v Maybe": "invalid choice: 'Maybe'",
    "%makedip --gpu 0": "--gpu",
    "%%dip nowhere\n1": "invalid choice: 'nowhere'",
    "%%dip -S 2\n1": "there is no rank 2 of 2",
    "%%dip -S one\n1": "-S takes 0,2 or all",
    "%%dip -S local\n1": "-S takes ranks",
    "%%dip -S 0 local\n1": "no -S or -a",
    "%%dip local -a finalizer\n1": "no -S or -a",
    "%%dip -S 0 local remote\n1": "one of remote, local and everywhere",
    "%%dip -a finalizer\n1": "the group has no app",
    "%%dip\nx = 1\n%timeit x": "%timeit in line 3",
    "%%dip everywhere\nfiles = !ls": "!ls in line 2",
    "%%dip\nimport asyncio\nawait asyncio.sleep(0)": "await",
    "%autodip maybe": "maybe",
    '%autodip on -a "--sea=all"': "--sea",
    '%autodip -a "-S all"': "options of %%dip after on",
    "%dipush nothing_there": "the notebook has no 'nothing_there'",
    "%dipush": "NAME",
    "%dipull -r 2 x": "there is no rank 2 of 2",
    "%dipull -r one x": "invalid int value: 'one'",
    "%dipper a.b": "takes a name, got 'a.b'",
    "%dipper": "NAME",
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, Any]:
    """All of the above, run in one shell."""
    cells = [*BEGIN, *WRONG, "%%dip\nrank()"]
    *found, after = run_cells(tmp_path_factory.mktemp("wrong"), cells)[len(BEGIN) :]
    assert values(after) == ["0"]
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("cell", WRONG)
def test_wrong_use(wrong, cell) -> None:
    """One line says what is wrong; nothing has started, and the group stays."""
    assert (wrong[cell]["error"], wrong[cell]["shown"]) == ("UsageError", [])
    assert WRONG[cell] in wrong[cell]["text"]


@pytest.mark.parametrize(
    "cell", ["%%dip\n1", "x = 1\n%dipush x", "%dipull x", "%dipper x", "%makedip -r"]
)
def test_without_a_group(run_alone, cell) -> None:
    """The error says how to make one."""
    (found,) = run_alone(cell)
    assert (found["error"], NO_GROUP in found["text"]) == ("UsageError", True)


def test_an_empty_cell(run_alone) -> None:
    """Is nothing to run."""
    assert errors(run_alone("%%dip\n\n\n", "%%dip everywhere\n \n")) == [None, None]


def test_help(run_alone) -> None:
    """`?` and -h explain every option, short and long."""
    asked = [
        "%makedip -h",
        "%%dip --help\n1 / 0",
        "%autodip -h",
        "%dipush -h",
        "%dipull -h",
        "%dipper -h",
    ]
    *found, doc = run_alone(*asked, "print(get_ipython().find_line_magic('makedip').__doc__)")
    assert errors(found) == [None] * 6
    for word in ("-g ID", "--gpus", "-a APP", "--app", "-r, --restart", "-k, --kill", "-i, --info",
                 "--verbose", "-t S", "--timeout", "fastai"):  # fmt: skip
        assert word in found[0]["out"], word
    for word in ("-q, --quiet", "-S RANK", "--see", "--appcmd", "remote,local,everywhere"):
        assert word in found[1]["out"], word
    assert "--args" in found[2]["out"]
    assert "--rank" in found[4]["out"]
    assert doc["out"] == found[0]["out"] + "\n"


def test_completion(run_alone) -> None:
    """The tabulator key offers options and words."""
    makedip, app, dip, where, auto = run_alone(
        ["%makedip --"], ["%makedip -g all -a f"], ["%%dip --"], ["%%dip e"], ["%autodip o"]
    )
    assert {"--gpus", "--app", "--restart", "--kill", "--info", "--verbose", "--timeout"} <= set(
        makedip
    )
    assert "fastai" in app
    assert {"--quiet", "--see", "--appcmd"} <= set(dip)
    assert "everywhere" in where
    assert {"on", "off"} <= set(auto)


def test_both_extensions(run_alone) -> None:
    """Each has ranks of its own; the notebook is a rank of one of them only."""
    *_, ranked, dip = run_alone(
        "%load_ext rankexec",
        "%ranks 2",
        "%makedip -g 0,1",
        "import os\nx = 1",
        "%%ranked\nx += 1\nx, os.environ['RANK']",
        "%%dip\nimport os\n'x' in globals(), os.environ['RANK']",
    )
    assert (ranked["value"], values(dip)) == ("(2, '0')", ["(False, '0')"])


def test_unload(run) -> None:
    """The group ends, and the shell is as before; loading it once more starts afresh."""
    before, *_, after, threads, _, fresh = run(
        "def state():\n    s = get_ipython()\n    return len(s.input_transformers_cleanup), "
        "{k: len(v) for k, v in s.events.callbacks.items()}, 'dip' in "
        "s.magics_manager.magics['cell']\nstate()",
        "%load_ext rankexec.ddip",
        "%makedip -g 0,1",
        "%%dip\n1",
        "%unload_ext rankexec.ddip",
        "import threading\nstate()",
        "[t.name for t in threading.enumerate() if 'rankexec' in t.name]",
        "%load_ext rankexec.ddip",
        "%makedip",
        begin=(),
    )
    assert (after["value"], threads["value"]) == (before["value"], "[]")
    assert fresh["out"].startswith(NO_GROUP)


def test_nothing_is_imported(run_alone) -> None:
    """Loading it imports neither torch nor fastai; a group without an app imports no fastai."""
    loaded, _, here, there = run_alone(
        "import sys\n[n for n in ('torch', 'fastai', 'accelerate') if n in sys.modules]",
        "%makedip -g 0,1",
        "'fastai' in sys.modules",
        "%%dip\nimport sys\n'fastai' in sys.modules",
    )
    assert loaded["value"] == "[]"
    assert (here["value"], values(there)) == ("False", ["False"])
