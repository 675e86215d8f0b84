"""`__main__`: scripts of every kind, and what people define in them, on every rank.

What they define is in `main_program`, the program under test.
"""

from __future__ import annotations

import json
import pathlib
import textwrap

import pytest
from helpers import run_python, run_script

PROGRAM = (pathlib.Path(__file__).parent / "main_program.py").read_text(encoding="utf-8")
UNGUARDED = PROGRAM + "\n\nmain()\n"
GUARDED = PROGRAM + '\n\nif __name__ == "__main__":\n    main()\n'


def run_as(way: str, folder: pathlib.Path) -> dict[str, object]:
    """Run the program and return what it found."""
    script = folder / "program.py"
    script.write_text(GUARDED if way == "guarded script" else UNGUARDED, encoding="utf-8")
    if way == "stdin":
        done = run_python(["-"], folder, stdin=UNGUARDED)
    elif way == "-c":
        done = run_python(["-c", UNGUARDED], folder)
    elif way == "-m":
        done = run_python(["-m", "program"], folder)
    else:
        done = run_python(["program.py"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first == "the program runs", "once, and on no rank"
    return json.loads(last)


@pytest.fixture(scope="module", params=["unguarded script", "guarded script", "-m", "-c", "stdin"])
def found(request, tmp_path_factory) -> dict[str, object]:
    """What the program finds, run in each way."""
    return run_as(request.param, tmp_path_factory.mktemp("program"))


@pytest.fixture(params=["0", "None"], ids=["caller_rank=0", "caller_rank=None"])
def seen(request, found) -> dict[str, object]:
    """The same for one mode."""
    return found[request.param]


def test_functions(seen) -> None:
    """Lambdas, closures, recursion, decorators, partials, generators."""
    assert seen["lambda"] == [6, 6]
    assert seen["closure"] == [6, 6]
    assert seen["mutual recursion"] == [True, True]
    assert seen["decorated"] == [12, 12]
    assert seen["partial"] == [14, 14]
    assert seen["generator"] == [[0, 1, 2]] * 2
    assert seen["name"] == ["__main__"] * 2


def test_instances(seen) -> None:
    """An instance of a class of `__main__` comes back as an instance of that very class."""
    assert seen["class"] == [["Point", 4, True]] * 2
    assert seen["classmethod"] == [["Special", 0, True]] * 2
    assert seen["bound method"] == [["Point", 4, True]] * 2
    assert seen["super"] == [["Special", 104, True]] * 2
    assert seen["property"] == [8, 8]
    assert seen["dataclass"] == [True, True]


def test_enums_and_named_tuples(seen) -> None:
    """Members stay the members, there and back."""
    for kind in ("enum", "enum back", "flags", "namedtuple", "NamedTuple"):
        assert seen[kind] == [True, True], kind


def test_exceptions(seen) -> None:
    """One of a class of `__main__` is raised as that class."""
    assert seen["exception"] == [True, 7, "no (7)"]


def test_todays_values(seen) -> None:
    """Every rank has the values of the moment of the call: of variables and of classes."""
    assert seen["today's value"] == [20, 20]
    assert seen["today's value in a method"] == [["Point", 11, True]] * 2
    assert seen["today's methods"] == [12, 12]


def test_globals(found) -> None:
    """Functions of one rank share them; the caller's are those of the caller's rank only."""
    assert found["None"]["shared globals"] == [6, 6]
    assert found["None"]["shared globals again"] == [6, 6]
    assert found["None"]["count in the caller"] == 5
    assert found["0"]["shared globals"] == [6, 6]
    assert found["0"]["shared globals again"] == [7, 7]
    assert found["0"]["count in the caller"] == 7


def test_imports_and_need(seen) -> None:
    """Functions of `__main__` see what `imports=` brings; libraries see what `need=` names."""
    assert seen["imports"] == ["1/2"] * 2
    assert seen["need"] in ([5, 5], [7, 7])
    assert seen["left by imports"] is False


def test_classes_are_not_altered(found) -> None:
    """Neither by going out nor by coming back."""
    assert found["classes unchanged"] is True


# --- more about scripts ---


def test_two_classes_of_one_name(tmp_path) -> None:
    """A class that is defined anew is another class, for its instances too."""
    out = run_script(
        tmp_path,
        textwrap.dedent("""
            from rankexec import RankedExecutor

            with RankedExecutor(2, caller_rank=None) as executor:
                made = []
                for number in range(2):
                    class Thing:
                        value = number
                    made.append(executor.submit(lambda: Thing()).result())
                    print(type(made[-1]) is Thing, made[-1].value)
            print(type(made[0]) is type(made[1]))
        """),
    )
    assert out == "True 0\nTrue 1\nFalse\n"


def test_a_module_beside_the_script(tmp_path) -> None:
    """Ranks import what the script can import, by its name."""
    (tmp_path / "beside_the_script.py").write_text(
        "print('imported')\nclass Thing:\n    value = 5\n"
    )
    out = run_script(
        tmp_path,
        textwrap.dedent("""
            from beside_the_script import Thing
            from rankexec import RankedExecutor

            with RankedExecutor(2, output="caller", gather=True) as executor:
                things = executor.submit(Thing).result()
            print([type(thing) is Thing for thing in things])
        """),
    )
    assert out == "imported\n[True, True]\n"


def test_a_script_run_by_another(tmp_path) -> None:
    """`runpy` makes a `__main__` that is no file's module; it is not run again either."""
    (tmp_path / "inner.py").write_text(
        textwrap.dedent("""
            from rankexec import RankedExecutor

            print("inner")

            def work():
                return VALUE

            VALUE = 5
            with RankedExecutor(2, gather=True) as executor:
                print(executor.submit(work).result())
        """)
    )
    out = run_script(tmp_path, "import runpy\nrunpy.run_path('inner.py', run_name='__main__')\n")
    assert out == "inner\n[5, 5]\n"


def test_need_and_imports_for_functions_of_the_script(tmp_path) -> None:
    """A script's function finds by name what both have set in its `__main__`."""
    out = run_script(
        tmp_path,
        textwrap.dedent("""
            from rankexec import RankedExecutor

            threshold = 7

            def work():
                import __main__
                return path_of_ranks.basename("a/b"), __main__.threshold

            with RankedExecutor(
                2, need="threshold", imports="from os import path as path_of_ranks", gather=True
            ) as executor:
                print(executor.submit(work).result())
                print("path_of_ranks" in globals())
        """),
    )
    assert out == "[('b', 7), ('b', 7)]\nFalse\n"
