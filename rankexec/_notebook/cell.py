"""A notebook's cell as the function of a gang."""

from __future__ import annotations
import __future__

import ast
import builtins
import linecache
import os
import types
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rankexec._gang.main import main_namespace
from rankexec._gang.sets import Sets
from rankexec._notebook.reach import names_assigned, names_read_and_set
from rankexec._notebook.shown import Collector, Display, collected, silenced

__all__ = ("Asked", "Cell", "CellResult", "Source", "run_source")

_FUTURES = 0
for _name in __future__.all_feature_names:
    _FUTURES |= getattr(__future__, _name).compiler_flag


@dataclass(frozen=True)
class Source:
    """A cell's text, and what compiling it needs."""

    text: str
    filename: str
    """What stands in the notebook's tracebacks."""
    title: str
    """The same in children's."""
    flags: int = 0
    """What earlier cells have imported from `__future__`."""

    def compile(self) -> tuple[types.CodeType, types.CodeType | None, ast.Module, int]:
        """Return the statements, the last expression if there is one, the tree, and the flags.

        Raises:
            SyntaxError: it is no Python.
        """
        flags = self.flags & _FUTURES
        whole = compile(self.text, self.filename, "exec", flags, dont_inherit=True)
        flags |= whole.co_flags & _FUTURES
        only_tree = flags | ast.PyCF_ONLY_AST
        tree: Any = compile(self.text, self.filename, "exec", only_tree, dont_inherit=True)
        if not tree.body or not isinstance(tree.body[-1], ast.Expr):
            return whole, None, tree, flags
        body = ast.Module(tree.body[:-1], [])
        value = ast.Expression(tree.body[-1].value)
        return (
            compile(body, self.filename, "exec", flags, dont_inherit=True),
            compile(value, self.filename, "eval", flags, dont_inherit=True),
            tree,
            flags,
        )

    def sets(self) -> Sets:
        """Return the names that the cell sets. Raises SyntaxError."""
        return Cell(self, Asked(), {}).sets

    def add_lines(self) -> None:
        """Let tracebacks show the cell's lines."""
        lines = [line + "\n" for line in self.text.splitlines()]
        linecache.cache[self.filename] = (len(self.text), None, lines, self.filename)


def run_source(source: Source) -> Any:
    """Run a cell in this process's `__main__`; return its last expression's value."""
    source.add_lines()
    body, last, _, _ = source.compile()
    namespace = main_namespace()
    exec(body, namespace)  # noqa: S102  # the user's own cell
    return None if last is None else eval(last, namespace)  # noqa: S307  # the same


@dataclass(frozen=True)
class Asked:
    """What the ranks of a cell are asked for."""

    gather: str | None = None
    """The name whose value every rank returns, if the cell sets it; else its last value."""
    collect: frozenset[int] = frozenset()
    """The ranks, children all, that return what they display."""
    silent: bool = False
    """Whether the notebook's own rank prints and displays nothing."""
    show_value: bool = True
    """Whether the last expression's value is displayed."""


@dataclass
class CellResult:
    """What a cell came to on one rank."""

    value: Any = None
    """The last expression's in the notebook's own rank; in others what is gathered."""
    gathered: Any = None
    displays: list[Display] = field(default_factory=list)


class Cell:
    """Runs a cell in the notebook's namespace; in a child, in its `__main__`.

    What travels is the text and `__wrapped__`, a function that is never called: a pickler finds by
    it which of the notebook's variables the cell reads, and names it where one cannot travel. None
    if it reads none.
    """

    __name__ = __qualname__ = "cell"

    def __init__(self, source: Source, asked: Asked, namespace: dict[str, Any]) -> None:
        self._source = source
        self._asked = asked
        self._namespace = namespace
        self._body, self._last, self._tree, self.flags = source.compile()
        self.has_value = self._last is not None

    @cached_property
    def assigned(self) -> set[str]:
        """The names that it sets."""
        last = set() if self._last is None else names_assigned(self._last)
        return names_assigned(self._body) | last

    @property
    def sets(self) -> Sets:
        """The same, and which of them for certain."""
        return Sets(self._read_and_set[1], frozenset(self.assigned))

    @cached_property
    def _read_and_set(self) -> tuple[set[str], frozenset[str]]:
        return names_read_and_set(self._tree, self.flags)

    @cached_property
    def __wrapped__(self) -> types.FunctionType | None:  # errors look there for what is reached
        read = self._read_and_set[0] & self._namespace.keys()
        names = sorted(name for name in read if not _is_the_shells(self._namespace[name]))
        return _reaching(names, self._namespace) if names else None

    def __call__(self) -> CellResult:
        """Run the cell as the notebook's rank."""
        __tracebackhide__ = True
        with ExitStack() as stack:
            if self._asked.silent:
                stack.enter_context(silenced())
            value = self.run()
        return CellResult(value, self._gathered(value))

    def run(self) -> Any:
        """Run the cell and return the last expression's value."""
        __tracebackhide__ = True
        exec(self._body, self._namespace)  # noqa: S102  # the user's own cell
        if self._last is None:
            return None
        return eval(self._last, self._namespace)  # noqa: S307  # the same

    def run_in_child(self) -> CellResult:
        """Run the cell as a rank that has no notebook."""
        with ExitStack() as stack:
            collector: Collector | None = None
            if int(os.environ["RANK"]) in self._asked.collect:
                collector = stack.enter_context(collected())
            value = self.run()
            displays = []
            if collector is not None:
                if self._asked.show_value:
                    collector.add_value(value)
                displays = collector.finish()
            return CellResult(None, self._gathered(value), displays)

    def _gathered(self, value: Any) -> Any:
        name = self._asked.gather
        if name is None:
            return None
        return self._namespace[name] if name in self.assigned else value

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_child, (replace(self._source, flags=self.flags), self._asked, self.__wrapped__)


def _in_child(source: Source, asked: Asked, _reached: types.FunctionType | None) -> Any:
    """Return, in a child, what runs the cell. Its variables have come with `_reached`."""
    source = replace(source, filename=source.title)
    source.add_lines()
    if not hasattr(builtins, "display"):  # IPython has it there
        setattr(builtins, "display", _display)  # noqa: B010  # no such name in its types
    return Cell(source, asked, main_namespace()).run_in_child


def _display(*objects: Any, **options: Any) -> Any:
    from IPython.display import display

    return display(*objects, **options)


def _is_the_shells(value: Any) -> bool:
    """Return whether this is IPython's `exit` or `quit`, which end a shell; a rank has Python's."""
    return type(value).__module__ == "IPython.core.autocall"


def _reaching(names: list[str], namespace: dict[str, Any]) -> types.FunctionType:
    """Return a function of this namespace whose code has these names as its globals."""
    found: dict[str, Any] = {}
    code = compile(f"def cell(): return ({' '.join(n + ',' for n in names)})", "<cell>", "exec")
    exec(code, found)  # noqa: S102  # names, no more
    function = types.FunctionType(found["cell"].__code__, namespace, "cell")
    function.__module__ = "__main__"
    return function
