"""Modules that are edited while the caller runs: each rank has them as they are now."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from pathlib import Path

import pytest
from helpers import run_python, run_script

HERE = Path(__file__).parent

BEGIN = """
import os, pathlib, sys
sys.dont_write_bytecode = True
from rankexec import LocalLauncher, RankedExecutor

def edit(name, source):
    pathlib.Path(f"{name}.py").write_text("import os\\nimported_in = os.getpid()\\n" + source)

def value():
    import edited
    return edited.value

def where():
    import edited
    return edited.imported_in == os.getpid()

"""


def run(tmp_path: Path, source: str) -> list[str]:
    """Run a script in a folder of its own and return the lines that it printed."""
    return run_script(tmp_path, BEGIN + textwrap.dedent(source)).splitlines()


def test_beside_the_script(tmp_path):
    """A rank imports the file of the moment; rank 0 has what the caller has imported."""
    lines = run(
        tmp_path,
        """
        edit("edited", "value = 1")
        with RankedExecutor(2, gather=True, output="caller") as executor:
            print(executor.submit(value).result())
            edit("edited", "value = 'second'")
            print(executor.submit(value).result())
            import importlib, edited
            importlib.reload(edited)
            print(executor.submit(value).result())
        """,
    )
    assert lines == ["[1, 1]", "[1, 'second']", "['second', 'second']"]


def test_a_new_module_beside_the_script(tmp_path):
    """It is found, though its folder was looked into before."""
    lines = run(
        tmp_path,
        """
        edit("first", "")
        def missing():
            try:
                import edited
            except ImportError:
                return "missing"
        with RankedExecutor(1, caller_rank=None) as executor:
            print(executor.submit(missing).result())
            edit("edited", "value = 1")
            print(executor.submit(value).result())
        """,
    )
    assert lines == ["missing", "1"]


@pytest.mark.parametrize("standby", [False, True])
def test_preloaded(tmp_path, standby):
    """The guardian's is used as long as the file is the same, and not longer."""
    lines = run(
        tmp_path,
        f"""
        edit("edited", "value = 1")
        launcher = LocalLauncher("forkserver", preload=["edited"], standby={standby})
        with RankedExecutor(1, caller_rank=None, launcher=launcher) as executor:
            print(executor.submit(value).result(), executor.submit(where).result())
            edit("edited", "value = 'second'")
            print(executor.submit(value).result(), executor.submit(where).result())
        """,
    )
    assert lines == ["1 False", "second True"]


def test_preloaded_and_imported_by_another(tmp_path):
    """What holds something of an edited module is imported again, too."""
    lines = run(
        tmp_path,
        """
        edit("edited", "value = 1")
        edit("user_of_it", "from edited import value")
        def both():
            import user_of_it
            return user_of_it.value, value()
        launcher = LocalLauncher("forkserver", preload=["user_of_it"])
        with RankedExecutor(1, caller_rank=None, launcher=launcher) as executor:
            print(executor.submit(both).result())
            edit("edited", "value = 'second'")
            print(executor.submit(both).result())
        """,
    )
    assert lines == ["(1, 1)", "('second', 'second')"]


IMPORT_IT = """
import edited
from edited import f, C
from rankexec import RankedExecutor
c = C()
executor = RankedExecutor(2, gather=True, output="caller")
def all_of_it():
    return edited.f(), f(), edited.C().g(), C().g(), c.g()
"""


@pytest.mark.notebook
@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="needs ipykernel")
def test_autoreload(tmp_path):
    """The module that IPython has reloaded in the caller, and a rank's fresh import, agree."""
    source = "def f():\n    return {0}\nclass C:\n    def g(self):\n        return {0}\n"
    cells = [
        "%load_ext autoreload\n%autoreload 2",
        "from pathlib import Path\nPath('edited.py').write_text(" + repr(source.format(1)) + ")",
        IMPORT_IT,
        "print(executor.submit(all_of_it).result())",
        "Path('edited.py').write_text(" + repr(source.format("'second'")) + ")",
        "print(executor.submit(all_of_it).result())\nexecutor.shutdown()",
    ]
    program = str(HERE / "run_in_kernel.py")
    done = run_python([program], tmp_path, stdin=json.dumps(cells), timeout=100)
    first, second = (1,) * 5, ("second",) * 5
    printed = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert printed == [repr([first, first]), repr([second, second])], done.stderr
