"""`imports=` and `need=`: what a rank's `__main__` holds before the call arrives."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rankexec._checks import check_list
from rankexec._gang.call import inside_rank
from rankexec._gang.deferred import Interruptible
from rankexec._gang.main import main_namespace

__all__ = (
    "find_in_main",
    "find_needed",
    "global_imports",
    "import_star",
    "keep_imports",
    "parse_imports",
    "run_imports",
    "set_in_main",
    "with_imports",
)

T = TypeVar("T")


def parse_imports(source: str) -> str:
    """Return `source` if it is import statements and nothing else.

    Raises:
        ValueError: a line is no import statement, or no Python.
        TypeError: `source` is no string.
    """
    if not isinstance(source, str):
        raise TypeError(f"imports takes a string of import statements, got {source!r}")
    source = _dedented(source)
    if not source:
        return ""
    if "\0" in source:  # Pythons differ in what they say to it
        raise ValueError(f"imports does not parse: {source!r} (null characters)")
    try:
        tree = ast.parse(source, "<imports>")
        # Not in the string itself: what stands in it may be more than import statements.
        parsed = ast.unparse(_checked(tree))
        compile(parsed, "<imports>", "exec")  # finds what the parser does not: __future__
    except SyntaxError as error:
        line = (error.text or source).strip()
        raise ValueError(f"imports does not parse: {line!r} ({error.msg})") from error
    return parsed


def _checked(tree: ast.Module) -> ast.Module:
    for statement in tree.body:
        text = ast.unparse(statement)
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            raise ValueError(  # noqa: TRY004  # a statement is no type of an argument
                f"imports takes import statements only, got {text!r}"
            )
        if isinstance(statement, ast.ImportFrom) and statement.level:
            raise ValueError(f"imports takes absolute imports only: no package, got {text!r}")
    return tree


def _dedented(source: str) -> str:
    # One statement a line is written indented in many styles; textwrap.dedent keeps a first line
    # without indentation apart from the rest.
    return "\n".join(line.strip() for line in source.strip().splitlines())


def run_imports(source: str) -> None:
    """Run import statements in this process's `__main__`."""
    main_namespace().update(_imported(source))


def _imported(source: str) -> dict[str, Any]:
    if not source:  # as in most calls
        return {}
    found: dict[str, Any] = {"__name__": "__main__"}
    with Interruptible():
        exec(compile(source, "<imports>", "exec"), found)  # noqa: S102  # import statements, checked
    return {name: found[name] for name in found if name not in ("__name__", "__builtins__")}


def global_imports(imports: str | Sequence[str], ns: dict[str, Any] | None = None) -> None:
    """Run import statements in a namespace; what it has under such a name is replaced.

    Args:
        imports: a list of import statements, or a string of them.
        ns: the namespace, a dict; None: `__main__`'s.

    Raises:
        ValueError: a line is no import statement; nothing has been imported.
        TypeError: `imports` is neither a string nor strings.
    """
    source = (
        imports
        if isinstance(imports, str)
        else "\n".join(check_list("imports takes a list of strings", imports, str))
    )
    found = _imported(parse_imports(source))
    (main_namespace() if ns is None else ns).update(found)


def import_star(modules: Sequence[str], ns: dict[str, Any] | None = None) -> None:
    """Do `from module import *` for each module; inside a function, too.

    Args:
        modules: a list of module names.
        ns: the namespace, a dict; None: `__main__`'s.

    Raises:
        ValueError: a name is none that a module can have.
        TypeError: `modules` is no list of strings.
    """
    names = check_list("modules takes a list of strings", modules, str)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"modules takes names of modules, got {name!r}")
    global_imports([f"from {name} import *" for name in names], ns)


def find_needed(names: str | Iterable[str]) -> dict[str, Any]:
    """Return the values of `names` in `__main__`; a string is split at spaces and commas.

    Raises:
        NameError: `__main__` has no such name.
        TypeError: `names` is neither a string nor strings.
    """
    wanted = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    main = main_namespace()
    for name in wanted:
        if not isinstance(name, str):
            raise TypeError(f"need takes names, got {name!r}")
        if name not in main:
            raise NameError(f"need names {name!r}, which is not defined in __main__")
    return {name: main[name] for name in wanted}


def set_in_main(values: dict[str, Any]) -> None:
    """Set names in this process's `__main__`."""
    main_namespace().update(values)


def find_in_main(name: str, rank: int | None) -> tuple[Any, ...]:
    """Return (in a rank) the value of a name in `__main__`, or nothing; nothing in other ranks.

    Args:
        name: the name.
        rank: which rank is asked; None: all.
    """
    main = main_namespace()
    asked = rank is None or rank == inside_rank()
    return (main[name],) if asked and name in main else ()


def keep_imports(source: str) -> dict[str, Any]:
    """Let the caller's `__main__` have the imports, and return what that has added.

    Names that the user has there already are left alone.
    """
    main = main_namespace()
    added = {name: value for name, value in _imported(source).items() if name not in main}
    main.update(added)
    return added


@contextmanager
def with_imports(source: str) -> Iterator[None]:
    """Let the caller's `__main__` have the imports while its rank runs, and not longer.

    What the rank has set under such a name stays.
    """
    main = main_namespace()
    added = keep_imports(source)
    try:
        yield
    finally:
        for name, value in added.items():
            if name in main and main[name] is value:
                del main[name]
