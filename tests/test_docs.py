"""The documents: every example is run and prints what is shown; every test that is named exists.

The blocks of a page, in their order, are one script, or with magics the cells of one notebook. A
`text` block right after a `python` block is what that block prints; process ids, host names and
times may differ.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from helpers import run_python, run_script, whole_lines

import rankexec._gang

HERE = Path(__file__).resolve().parent
PAGES = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]
OPTIONAL = ("torch", "numpy", "accelerate", "lightning")

_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```\n", re.MULTILINE)
_MARK = "-- end of block --"


class Page:
    """A page's examples, and what they are said to print (None: nothing is said)."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.examples: list[tuple[str, str | None]] = []
        fences = list(_FENCE.finditer(self.text))
        for fence, following in itertools.zip_longest(fences, fences[1:]):
            if fence[1] != "python":
                continue
            shown = None
            if following is not None and following[1] == "text":
                between = self.text[fence.end() : following.start()]
                shown = following[2] if not between.strip() else None
            self.examples.append((fence[2], shown))

    def script(self) -> str:
        """Return all examples as one script, with a mark after each one's output."""
        return "".join(f"{source}\nprint({_MARK!r}, flush=True)\n" for source, _ in self.examples)

    def is_notebook(self) -> bool:
        """Return whether its examples are cells for IPython."""
        return "%load_ext" in self.script()

    def printed(self, folder: Path) -> list[str]:
        """Run all examples; return what each prints."""
        if not self.is_notebook():
            printed = run_script(folder, self.script()).split(f"{_MARK}\n")
            assert printed.pop() == ""
            return printed
        cells = json.dumps([source for source, _ in self.examples])
        done = run_python([str(HERE / "run_in_shell.py")], folder, stdin=cells)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout.splitlines()[-1])
        assert [cell["text"] for cell in found] == [None] * len(found)
        return [
            "\n".join(
                [re.sub(r"^Out\[\d+\]: ", "", cell["out"], flags=re.MULTILINE)]
                + [data["text/plain"] for data in cell["shown"]]
            )
            for cell in found
        ]

    def missing(self) -> list[str]:
        """Return the optional packages that it needs and that are not installed."""
        script = self.script()
        needed = {name for name in OPTIONAL if re.search(rf"\b(import|from) {name}\b", script)}
        if "TorchDDPCtx" in script:
            needed.add("torch")
        if self.is_notebook():
            needed.add("IPython")
        return [name for name in sorted(needed) if importlib.util.find_spec(name) is None]


def by_rank(text: str) -> dict[str, list[str]]:
    """Return the lines of each rank: in which order those of different ranks come is chance."""
    text = re.sub(r"\b(pid|process) \d+", r"\1 N", text)
    text = re.sub(r"\b(pid N on) [\w.-]+", r"\1 host", text)
    text = re.sub(r"\b\d+\.\d+ s\b", "N s", text)
    # A table of living ranks: its columns are as wide as its pids.
    text = re.sub(r" {2,}", "  ", re.sub(r"\b\d+ MiB\b", "N MiB", text))
    text = re.sub(r"^(  \d+  \S+  )\d+(?=  N s)", r"\1N", text, flags=re.MULTILINE)
    lines = defaultdict(list)
    for line in filter(None, whole_lines(text)):
        lines["".join(re.findall(r"^\[rank \d+\]", line))].append(line.rstrip())
    return lines


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples(path, tmp_path):
    """A page's examples run in a fresh interpreter and print what the page shows."""
    page = Page(path)
    if not page.examples:
        return
    if missing := page.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    for output, (source, shown) in zip(page.printed(tmp_path), page.examples, strict=True):
        if shown is None:
            assert output == "", f"the page does not show what this prints:\n{source}"
        else:
            assert by_rank(output) == by_rank(shown)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_example_is_left_out(path):
    """Blocks of Python are marked as such and nothing else, so that all of them are run."""
    marks = {fence[1] for fence in _FENCE.finditer(path.read_text(encoding="utf-8"))}
    assert {mark for mark in marks if "py" in mark} <= {"python"}
    assert marks <= {
        "python",
        "text",
        "console",
        "{toctree}",
        "{eval-rst}",
        "{include} ../CHANGELOG.md",
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links(path):
    """Links between the documents lead somewhere."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https:"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_tests_exist(path):
    """A statement that names its test names one that is there."""
    for file, name in re.findall(r"`(test_\w+)(?:\.py)?::(test_\w+)`", path.read_text("utf-8")):
        source = (HERE / f"{file}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}.py::{name}"


def test_the_picture():
    """How-it-works has the picture that the package's docstring has."""
    page = (HERE.parent / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    (picture,) = (fence[2] for fence in _FENCE.finditer(page) if "caller process" in fence[2])
    docstring = "\n".join(line.removeprefix("    ") for line in rankexec._gang.__doc__.splitlines())
    assert picture in docstring
