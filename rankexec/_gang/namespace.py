"""`imports=` and `need=`: what a rank's `__main__` holds before the call arrives."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ("find_needed", "parse_imports", "run_imports", "set_in_main", "with_imports")


def parse_imports(source: str) -> str:
    """Return `source` if it is import statements and nothing else.

    Raises:
        ValueError: a line is no import statement, or no Python.
        TypeError: `source` is no string.
    """
    if not isinstance(source, str):
        raise TypeError(f"imports takes a string of import statements, got {source!r}")
    try:
        tree = ast.parse(_dedented(source), "<imports>")
    except SyntaxError as error:
        raise ValueError(f"imports does not parse: {error}") from error
    for statement in tree.body:
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            text = ast.unparse(statement)
            raise ValueError(  # noqa: TRY004  # a statement is no type of an argument
                f"imports takes import statements only, got {text!r}"
            )
    return ast.unparse(tree)


def _dedented(source: str) -> str:
    # One statement a line is written indented in many styles; textwrap.dedent keeps a first line
    # without indentation apart from the rest.
    return "\n".join(line.strip() for line in source.strip().splitlines())


def run_imports(source: str) -> None:
    """Run import statements in this process's `__main__`."""
    if source:
        code = compile(source, "<imports>", "exec")
        exec(code, sys.modules["__main__"].__dict__)  # noqa: S102  # import statements, checked


def find_needed(names: str | Iterable[str]) -> dict[str, Any]:
    """Return the values of `names` in `__main__`; a string is split at spaces and commas.

    Raises:
        NameError: `__main__` has no such name.
        TypeError: `names` is neither a string nor strings.
    """
    wanted = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    main = sys.modules["__main__"].__dict__
    for name in wanted:
        if not isinstance(name, str):
            raise TypeError(f"need takes names, got {name!r}")
        if name not in main:
            raise NameError(f"need names {name!r}, which is not defined in __main__")
    return {name: main[name] for name in wanted}


def set_in_main(values: dict[str, Any]) -> None:
    """Set names in this process's `__main__`."""
    sys.modules["__main__"].__dict__.update(values)


@contextmanager
def with_imports(source: str) -> Iterator[None]:
    """Let the caller's `__main__` have the imports while its rank runs, and not longer.

    Names that the user has there already are left alone.
    """
    if not source:
        yield
        return
    fresh: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<imports>", "exec"), fresh)  # noqa: S102  # checked, as above
    main = sys.modules["__main__"].__dict__
    added = [name for name in fresh if name not in main and name != "__builtins__"]
    main.update({name: fresh[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            main.pop(name, None)
