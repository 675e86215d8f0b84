"""The magics in a shell: what cells on ranks print, display, assign and raise."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

import pytest
from helpers import run_cells, run_python, whole_lines

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not importlib.util.find_spec("IPython"), reason="needs IPython"),
]
BEGIN = (
    "%load_ext rankexec",
    "%ranks 2",
    # What `print` writes piece by piece, other ranks' lines may come between.
    "import os\nrank = lambda: int(os.environ['RANK'])\nsay = lambda x: print(f'{x}\\n', end='')",
)


@pytest.fixture
def run(tmp_path):
    """Run cells, after those that every notebook begins with; return what came of each."""

    def run(*cells: Any, begin: tuple[str, ...] = BEGIN) -> list[Any]:
        return run_cells(tmp_path, [*begin, *cells])[len(begin) :]

    return run


def lines(text: str) -> list[str]:
    """Return lines in an order of their own: those of different ranks come as they come."""
    return sorted(whole_lines(text))


# --- what the notebook has before and after ---


def test_a_cell_is_the_notebooks(run) -> None:
    """It finds the notebook's variables, the notebook's rank sets them, its value is displayed."""
    _, cell, after = run(
        "numbers = [1, 2]\ndef double(x): return [y * 2 for y in x]",
        "%%ranked\nmine = double(numbers)[rank()]\nnumbers += [3]\nsay(f'rank {mine}')\nmine + 1",
        "mine, numbers, _, 'RANK' in os.environ",
    )
    assert (cell["error"], cell["value"]) == (None, "3")
    assert lines(cell["out"]) == ["Out[5]: 3", "[rank 1] rank 4", "rank 2"]
    assert after["value"] == "(2, [1, 2, 3], 3, False)"


def test_what_a_cell_defines(run) -> None:
    """Functions, classes, imports and annotations of a cell are the notebook's."""
    cell, later, again = run(
        "%%ranked\nfrom math import *\nlimit: float = pi\nclass Point:\n    at = floor(limit)\n"
        "def corner(): return Point().at",
        "Point.__module__, corner(), limit == pi, __annotations__",
        "%%ranked --gather both\ncorner(), Point.at",
    )
    assert (cell["error"], cell["out"]) == (None, "")
    assert later["value"] == "('__main__', 3, True, {'limit': <class 'float'>})"
    assert again["value"] == "(3, 3)"


def test_only_what_is_read_travels(run) -> None:
    """Not what lies about, which may be much or unshippable; nor what the cell makes anew."""
    _, cell, refused = run(
        "for i in range(10_000): globals()[f'v{i}'] = (i for _ in 'x')\nhandle = open(os.devnull)",
        "%%ranked\nwith open(os.devnull) as handle: pass\nv1 = iter('x')\nnext(v1)",
        "%%ranked\nprint('started')\ndef use(): return next(v2)",
    )
    assert (cell["error"], cell["value"]) == (None, "'x'")
    assert refused["error"] == "NotShippable"
    assert "started" not in refused["out"].splitlines()
    assert "v2" in refused["text"]
    assert "cell()" in refused["text"]


def test_display_where_nobody_has_imported_it(run) -> None:
    """A shell has `display` among its builtins; so has a rank."""
    (cell,) = run("%%ranked\ndef show(): display(3)\nshow()")
    assert (cell["out"], cell["shown"]) == ("[rank 1] 3\n", [{"text/plain": "3"}])


def test_future_imports(run) -> None:
    """Those of earlier cells hold on ranks, those of a cell on ranks hold for later ones."""
    *_, cell, later = run(
        "%%ranked\nfrom __future__ import annotations\ndef f(x: Unknown): pass",
        "%%ranked --gather hints\ndef g(x: Unknown): pass\ng.__annotations__",
        "def h(x: Unknown): pass\nhints",
    )
    assert (cell["error"], later["value"]) == (None, "[{'x': 'Unknown'}, {'x': 'Unknown'}]")


def test_a_semicolon_hides_the_value(run) -> None:
    """As in any cell."""
    (cell,) = run("%%ranked\nrank();")
    assert (cell["out"], cell["value"]) == ("", "None")


# --- whose output is seen ---

PRINTS = (
    "from IPython.display import HTML, display\nsay('text')\ndisplay(HTML(f'<b>{rank()}</b>'))\n"
)


def html(result: dict[str, Any]) -> list[str]:
    """Return what was displayed as HTML, headings included."""
    return [data["text/html"] for data in result["shown"] if "text/html" in data]


def test_see(run) -> None:
    """Ranks that are to be seen show what they display too, under a heading; others nothing."""
    everybody, other, here = run(
        f"%%ranked --see all\n{PRINTS}rank() + 40",
        f"%%ranked --see 1\n{PRINTS}rank() + 40",
        f"%%ranked --see 0\n{PRINTS}rank() + 40",
    )
    assert lines(everybody["out"]) == ["Out[4]: 40", "[rank 1] text", "text"]
    assert html(everybody) == ["<b>0</b>", "<b>rank 1</b>", "<b>1</b>"]
    assert everybody["shown"][-1]["text/plain"] == "41"
    assert (other["out"], other["value"]) == ("[rank 1] text\n", "None")
    assert html(other) == ["<b>rank 1</b>", "<b>1</b>"]
    assert (here["value"], html(here)) == ("40", ["<b>0</b>"])
    assert "rank 1" not in here["out"]


def test_a_repr_that_raises(run) -> None:
    """The rank says so, as a notebook does, and goes on."""
    (cell,) = run(
        "%%ranked --see 1\nclass A:\n    def _repr_html_(self): raise KeyError('mine')\n"
        "    def __repr__(self): return 'plain'\nA()"
    )
    assert cell["error"] is None
    assert "[rank 1] KeyError: 'mine'" in cell["err"]
    assert cell["shown"][1] == {"text/plain": "plain"}


def test_quiet(run) -> None:
    """Nobody prints; errors are raised nevertheless."""
    cell, error = run(
        f"%%ranked --quiet\n{PRINTS}x = 3\nx", "%%ranked --quiet\nif rank(): raise KeyError('k')"
    )
    assert (cell["out"], cell["err"], cell["shown"], cell["value"]) == ("", "", [], "None")
    assert error["error"] == "KeyError"


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs matplotlib")
def test_figures(run) -> None:
    """An open figure of another rank is shown as a picture, under its heading."""
    backend = "os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'"
    _, cell = run(backend, "%%ranked --see 1\nfrom matplotlib import pyplot\npyplot.plot([1, 2]);")
    assert cell["error"] is None, cell
    assert cell["shown"][0]["text/plain"] == "rank 1:"
    assert "image/png" in cell["shown"][1]


# --- where a cell runs ---


def test_local(run) -> None:
    """Only in the notebook, without ranks or a gang; magics work there."""
    (cell,) = run(
        "%%ranked --local\nx = !echo hi\nimport os\nx, os.environ.get('RANK')", begin=BEGIN[:1]
    )
    assert cell["value"] == "(['hi'], None)"


def test_remote(run) -> None:
    """On children only: the notebook's variables are as before, rank 0's value is shown."""
    _, cell, later = run(
        "x = [0]",
        "%%ranked --remote --gather all_x\nx.append(rank())\nnew = os.getpid()\nsay(x)\nx",
        "x, 'new' in globals(), all_x",
    )
    assert lines(cell["out"]) == ["[0, 0]", "[rank 1] [0, 1]"]
    assert (cell["value"], cell["shown"][0]["text/plain"]) == ("None", "[0, 0]")
    assert later["value"] == "([0], False, [[0, 0], [0, 1]])"


def test_the_notebooks_rank(run) -> None:
    """%ranks says which rank the notebook is, or none; %%ranked can say otherwise."""
    last, _, none, everywhere = run(
        "%%ranked\nx = rank()\nx",
        "%ranks 2 --caller-rank none",
        "%%ranked\nx = 7",
        "%%ranked --everywhere\nx, rank()",
        begin=(BEGIN[0], "%ranks 3 --caller-rank 2", BEGIN[2]),
    )
    assert last["value"] == "2"
    assert none["error"] is None
    assert everywhere["value"] == "(2, 0)"


def test_gather(run) -> None:
    """A list by rank: of a variable that the cell assigns, else of the last expression."""
    _, *_, found, neither = run(
        "%%ranked --gather loss\nloss = rank() * 10\nprint('done')",
        "%%ranked --gather squares\nrank() ** 2;",
        "loss, squares",
        "%%ranked --gather loss\nother = 1",
    )
    assert found["value"] == "([0, 10], [0, 1])"
    assert (neither["error"], neither["text"].partition(":")[0]) == (
        "UsageError",
        "%%ranked --gather loss",
    )


def test_timeout(run) -> None:
    """%ranks sets it for all cells, %%ranked for one."""
    one, _, every = run(
        "%%ranked --timeout 0.5\nimport time\nif rank(): time.sleep(60)",
        "%ranks 2 --timeout 0.5",
        "%%ranked\nimport time\nif rank(): time.sleep(60)",
    )
    assert (one["error"], every["error"]) == ("GangTimeout", "GangTimeout")


def test_errors(run) -> None:
    """The first failure, with the lines of the cell, as `submit` raises it; the next cell works."""
    child, own, syntax, unfinished, after = run(
        "%%ranked\nif rank() == 1:\n    raise KeyError('k')",
        "%%ranked\n\nif rank() == 0:\n    1 / 0",
        "%%ranked\nx = = 1",
        "%%ranked\nx = (1",
        "%%ranked\nif rank() > 1: exit()\nrank()",
    )
    assert child["error"] == "KeyError"
    assert 'File "Cell In[4]", line 3' in child["out"]
    assert "    raise KeyError('k')" in child["out"]
    assert own["error"] == "ZeroDivisionError"
    assert re.search(r"4 +1 / 0", re.sub(r"\x1b\[[\d;]*m", "", own["out"])), own["out"]
    assert "rankexec" not in re.sub(r"\[rank.*", "", own["out"])
    assert (syntax["error"], unfinished["error"]) == ("SyntaxError", "SyntaxError")
    assert (after["error"], after["value"]) == (None, "0")


# --- the gang ---


def test_ranks(run) -> None:
    """The gang is shown; of the last one pids, times and exit codes. --off ends it."""
    none, made, cell, info, _, off = run(
        "%ranks",
        "%ranks 2 --devices 3,1 --standby --preload json,decimal",
        "%%ranked --gather seen\nimport sys\nos.environ.get('CUDA_VISIBLE_DEVICES'), "
        "'decimal' in sys.modules",
        "%ranks --info",
        "%ranks --off",
        "%%ranked\n1",
        begin=BEGIN[::2],
    )
    assert "there is no gang" in none["shown"][0]["text/plain"]
    assert "no cell has run yet" in made["shown"][0]["text/plain"]
    assert cell["error"] is None
    title, head, *rows = info["shown"][0]["text/plain"].splitlines()
    assert title == "2 ranks, the notebook is rank 0"
    assert [row.split()[:2] for row in rows] == [["0", "3"], ["1", "1"]]
    assert head.split()[:3] == ["rank", "device", "pid"]
    assert all(int(row.split()[2]) for row in rows)
    assert info["shown"][0]["text/html"].count("<tr>") == 3
    assert (off["error"], "there is no gang" in off["text"]) == ("UsageError", True)


def test_ranks_that_use_gpus(run) -> None:
    """Their GPU memory has a column of its own."""
    *_, info = run(
        "%ranks 2",
        "%%ranked --remote\nimport ranked_functions\nranked_functions.use_gpu_memory(3 << 30)",
        "%ranks",
    )
    _, head, *rows = info["shown"][0]["text/plain"].splitlines()
    assert head.endswith("  memory  GPU memory")
    assert [row.split()[-2:] for row in rows] == [["3072", "MiB"]] * 2
    assert "<th>GPU memory</th>" in info["shown"][0]["text/html"]


def test_ranks_in_ddp(run) -> None:
    """--ddp: the ranks are in one group, which is gone from the notebook afterwards."""
    if not importlib.util.find_spec("torch"):
        pytest.skip("needs torch")
    *_, cell, after = run(
        "%ranks 2 --ddp",
        "import torch, torch.distributed as dist\ntotal = torch.zeros(1)",
        "%%ranked\ntotal += rank() + 1\ndist.all_reduce(total)\ntotal.item()",
        "total.item(), dist.is_initialized()",
    )
    assert (cell["value"], after["value"]) == ("3.0", "(3.0, False)")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%ranks 0", "world_size takes an int of at least 1, got 0"),
        ("%ranks two", "invalid int value: 'two'"),
        ("%ranks 3 --devices 0,2", "world_size=3 is more than the 2 devices"),
        ("%ranks 2 --caller-rank 2", "caller_rank takes 0 to 1"),
        ("%ranks 2 --caller-rank me", "--caller-rank takes a rank or none"),
        ("%ranks 2 --preload no_such_module", "no_such_module"),
        ("%ranks 2 --off", "a gang, or --info, --restart or --off"),
        ("%ranks --sesion", "--sesion"),
        ("%%ranked --see 2\n1", "there is no rank 2 of 2"),
        ("%%ranked --see one\n1", "--see takes 0,2 or all"),
        ("%%ranked --see 1 --quiet\n1", "--see or --quiet"),
        ("%%ranked --local --remote\n1", "--local and --remote"),
        ("%%ranked --local --see all\n1", "--local starts no ranks"),
        ("%%ranked --gather a.b\n1", "--gather takes a name, got 'a.b'"),
        ("%%ranked --timeout 0\n1", "timeout takes seconds above 0"),
        ("%%ranked --tiemout 3\n1", "--tiemout"),
        ("%%ranked\nx = 1\n%timeit x", "%timeit in line 3"),
        ("%%ranked\nfiles = !ls", "!ls in line 2"),
        ("%%ranked\n%%time\nx = 1", "%%time in line 2"),
        ("%%ranked\nget_ipython()", "get_ipython() in line 2"),
        ("%%ranked\nimport asyncio\nawait asyncio.sleep(0)", "await"),
        ("%autoranked maybe", "maybe"),
        ("%autoranked on --sea all", "--sea"),
        ("%autoranked off --see all", "options of %%ranked after on"),
    ],
)
def test_wrong_use(wrong, cell, says) -> None:
    """One line says what is wrong; nothing has started, and the gang stays."""
    assert (wrong[cell]["error"], wrong[cell]["shown"]) == ("UsageError", [])
    assert says in wrong[cell]["text"]


@pytest.fixture(scope="module")
def wrong(request, tmp_path_factory) -> dict[str, Any]:
    """All the cells above, run in one shell."""
    (mark,) = (m for m in test_wrong_use.pytestmark if m.name == "parametrize")
    cells = [cell for cell, _ in mark.args[1]]
    cells_after = [*BEGIN, *cells, "%%ranked\nrank()"]
    *found, after = run_cells(tmp_path_factory.mktemp("wrong"), cells_after)[len(BEGIN) :]
    assert after["value"] == "0"
    return dict(zip(cells, found, strict=True))


# --- autoranked ---


def test_autoranked(run) -> None:
    """Later cells run on ranks, those that begin with a magic, `!` or await do not."""
    where = "say('RANK' in os.environ)"
    on, state, plain, *others, mixed, turned_off, off = run(
        "%autoranked on --see all",
        "%autoranked",
        f"# a comment\n{where}",
        f"%time {where}",
        f"%%capture caught\n{where}",
        f"!true\n{where}",
        f"x = !true\n{where}",
        f"import asyncio\nawait asyncio.sleep(0)\n{where}",
        "os?",
        "",
        "# nothing",
        f"{where}\n%time 1",
        "%autoranked off",
        where,
    )
    assert on["out"] == state["out"] == "autoranked is on: %%ranked --see all\n"
    assert turned_off["out"] == "autoranked is off\n"
    assert lines(plain["out"]) == ["True", "[rank 1] True"]
    assert [other["error"] for other in others] == [None] * len(others)
    assert [re.findall(r"^(?:True|False)$", other["out"], re.MULTILINE) for other in others] == [
        ["False"], [], ["False"], ["False"], ["False"], [], [], [],
    ]  # fmt: skip
    assert (mixed["error"], off["out"]) == ("UsageError", "False\n")


def test_lines_of_autoranked_cells(run) -> None:
    """Errors name the lines as the user sees them, with %%ranked before the cell and without."""
    _, own, said = run("%autoranked on", "if rank():\n    1 / 0", "%%ranked\nif rank():\n    1 / 0")
    assert "line 2, in <module>\n    1 / 0" in own["out"]
    assert "line 3, in <module>\n    1 / 0" in said["out"]


# --- the extension ---


def test_help_and_completion(run) -> None:
    """`?` shows the options, and the tabulator key offers them."""
    text, *offered = run(
        "%ranks?\n%%ranked?\n%autoranked?", ["%ranks 2 --d"], ["%%ranked --"], ["%autoranked o"]
    )
    assert text["error"] is None
    assert {"--ddp", "--devices"} <= set(offered[0])
    assert {"--see", "--gather", "--remote", "--timeout"} <= set(offered[1])
    assert {"on", "off"} <= set(offered[2])


def test_help_of_each(run) -> None:
    """Every option is explained."""
    found = run(*(f"print(get_ipython().find_{kind}_magic('{name}').__doc__)" for kind, name in
                  (("line", "ranks"), ("cell", "ranked"), ("line", "autoranked"))))  # fmt: skip
    for word in ("--caller-rank RANK", "--standby", "--preload MODULES", "memory"):
        assert word in found[0]["out"]
    for word in ("--see RANKS", "--quiet", "--everywhere", "--gather NAME", "copies"):
        assert word in found[1]["out"]
    assert "%%ranked" in found[2]["out"]


def test_unload(run) -> None:
    """The gang ends, and the shell is as before; loading it once more starts afresh."""
    before, *_, after, threads, _, _, off, cell = run(
        "def state():\n    s = get_ipython()\n    return len(s.input_transformers_cleanup), "
        "{k: len(v) for k, v in s.events.callbacks.items()}, 'ranks' in "
        "s.magics_manager.magics['line']\nstate()",
        "%load_ext rankexec",
        "%ranks 2",
        "%%ranked\n1",
        "%unload_ext rankexec",
        "import threading\nstate()",
        "[t.name for t in threading.enumerate() if 'rankexec' in t.name]",
        "%load_ext rankexec\n%ranks 2",
        "%reload_ext rankexec",
        "%%ranked\n1",
        "%ranks 2\nget_ipython().run_cell_magic('ranked', '', '1')",
        begin=(),
    )
    assert (after["value"], threads["value"]) == (before["value"], "[]")
    assert "there is no gang" in off["text"]
    assert (cell["error"], cell["value"]) == (None, "1")


def test_import_loads_no_ipython(tmp_path) -> None:
    """Nor does the module of the magics, which documents and checkers import."""
    code = "import sys, rankexec.magics; print('IPython' in sys.modules)"
    assert run_python(["-c", code], tmp_path).stdout == "False\n"
    assert sys.modules["rankexec"].load_ipython_extension.__doc__
