"""The examples: each runs to its end in a process of its own, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from helpers import run_python

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    """It ends well, no process of it is left, and it prints what it should."""
    for name in ("torch", "sklearn", "tqdm"):
        if importlib.util.find_spec(name) is None:  # importing sklearn would change os.environ
            pytest.skip(f"needs {name}")
    done = run_python([str(path)], tmp_path, timeout=150)
    assert done.returncode == 0, done.stderr
    checks = {"digits_ddp": check_digits}
    if path.stem in checks:
        checks[path.stem](done)


def check_digits(done):
    """Two ranks reach 0.95 or better in the caller's own model; the README shows this output."""

    def only(pattern):
        (found,) = re.findall(pattern, done.stdout, re.MULTILINE)
        return found

    for accuracy in only(r"^held-out accuracy: ([\d.]+) by two ranks, ([\d.]+) by one$"):
        assert 0.95 <= float(accuracy) <= 1
    caller = only(r"^two ranks, rank 0 in this process, (\d+):$")
    assert only(r"^process (\d+) trains on 719 of 1437 scans$") == caller
    assert only(r"^\[rank 1\] process (\d+) trains on 719 of 1437 scans$") != caller
    assert only(r"^the caller's own model: (.*)$") == "6 of 6 parameters trained in place"
    assert only(r"^processes left: (.*)$") == "0"
    check_readme(done)


def check_readme(done):
    """The README has what was printed, but for the numbers; of the bars, the last states."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(two ranks, (?:.*\n)*?)```", readme, re.MULTILINE)
    bars = "\n".join(re.findall(r"^epochs:.*$", shown, re.MULTILINE))
    lines = re.sub(r"^epochs:.*\n", "", shown, flags=re.MULTILINE)
    assert without_numbers(lines) == without_numbers(done.stdout)
    assert len(bars.splitlines()) == 2
    assert set(without_numbers(bars)) <= set(without_numbers(done.stderr))


def without_numbers(text):
    """Return the lines, sorted, with all numbers alike, also those of a progress bar's speed."""
    text = re.sub(r"[\d.:]*\d", "N", text).replace("s/it", "it/s")
    return sorted(" ".join(line.split()) for line in text.splitlines())
