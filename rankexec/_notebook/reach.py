"""Which names of the notebook a cell may read: these, and no others, travel to the ranks."""

from __future__ import annotations

import ast
import dis
import types
from collections.abc import Iterator, Sequence

__all__ = ("names_assigned", "names_read_and_set")


def names_read_and_set(tree: ast.Module, flags: int) -> tuple[set[str], frozenset[str]]:
    """Return the names that a cell may read before it has set them, and those it sets for certain.

    In doubt a name counts as read: what one branch sets is not set, what a function reads is read
    where it is defined. A cell that is run again so leaves behind what it makes anew.

    Args:
        tree: the cell, which compiles.
        flags: `compile`'s, for what is imported from `__future__`.
    """
    scan = _Scan(flags)
    certain = scan.block(tree.body, frozenset())
    return scan.read - _OF_EVERY_NAMESPACE, certain


def names_assigned(code: types.CodeType) -> set[str]:
    """Return the global names that a cell, or a function in it, sets."""
    return {
        instruction.argval
        for inner in _nested(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opname == "STORE_GLOBAL"
        or (instruction.opname == "STORE_NAME" and inner is code)
    }


_OF_EVERY_NAMESPACE = frozenset({"__builtins__", "__name__", "__annotations__"})
_READS = frozenset(
    {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_NAME", "DELETE_GLOBAL"}
)
_TRY = (ast.Try, getattr(ast, "TryStar", ast.Try))  # from Python 3.11 on, with the same fields
_NO_NAMES = (ast.Break, ast.Continue, ast.Pass, ast.Global)


class _Scan:
    """A walk through the statements in their order; `known` is what is set for certain."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self.read: set[str] = set()

    def block(self, body: Sequence[ast.stmt], known: frozenset[str]) -> frozenset[str]:
        """Scan statements; return what is known after them."""
        for statement in body:
            known = self._statement(statement, known) - _unset(statement)
        return known

    def _statement(self, node: ast.stmt, known: frozenset[str]) -> frozenset[str]:
        if isinstance(node, _NO_NAMES):
            return known
        if isinstance(node, ast.If):
            self._expression(node.test, known)
            known = self.block(node.body, known) & self.block(node.orelse, known)
        elif isinstance(node, (ast.While, ast.For)):
            self._loop(node, known)
        elif isinstance(node, ast.With):
            known = self._with(node, known)
        elif isinstance(node, ast.Match):
            self._match(node, known)
        elif isinstance(node, _TRY):
            self._try(node, known)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node, known)
            known |= {node.name}
        else:
            self._add(ast.Module([node], []), known)
            known = self._after(node, known)
        return known

    def _with(self, node: ast.With, known: frozenset[str]) -> frozenset[str]:
        inside = known
        for item in node.items:
            self._expression(item.context_expr, inside)
            inside |= self._targets([item.optional_vars], inside)
        self.block(node.body, inside)
        first = node.items[0].optional_vars  # contexts may swallow what comes after it
        return known | {first.id} if isinstance(first, ast.Name) else known

    def _loop(self, node: ast.While | ast.For, known: frozenset[str]) -> None:
        inside = known
        if isinstance(node, ast.For):
            self._expression(node.iter, known)
            inside |= self._targets([node.target], known)
        else:
            self._expression(node.test, known)
        self.block(node.body, inside)
        self.block(node.orelse, known)

    def _match(self, node: ast.Match, known: frozenset[str]) -> None:
        self._expression(node.subject, known)
        for case in node.cases:
            inside = known
            for part in ast.walk(case.pattern):
                if isinstance(part, (ast.MatchAs, ast.MatchStar)) and part.name:
                    inside |= {part.name}
                elif isinstance(part, ast.MatchMapping) and part.rest:
                    inside |= {part.rest}
                elif isinstance(part, ast.expr):
                    self._expression(part, known)
            if case.guard is not None:
                self._expression(case.guard, inside)
            self.block(case.body, inside)

    def _try(self, node: ast.Try, known: frozenset[str]) -> None:
        after = self.block(node.body, known)
        for handler in node.handlers:
            if handler.type is not None:
                self._expression(handler.type, known)
            self.block(handler.body, known | {handler.name or ""})
        self.block(node.orelse, after)
        self.block(node.finalbody, known)

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, known: frozenset[str]
    ) -> None:
        """The function's own name is set when its body runs, but not yet for its decorators."""
        self._add(ast.Module([node], []), known | {node.name})
        for expression in [*node.decorator_list, *node.args.defaults]:
            self._expression(expression, known)

    def _after(self, node: ast.stmt, known: frozenset[str]) -> frozenset[str]:
        if isinstance(node, ast.Assign):
            return known | self._targets(node.targets, known)
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            return known | self._targets([node.target], known)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return known | {a.asname or a.name.partition(".")[0] for a in node.names}
        if isinstance(node, ast.ClassDef):
            return known | {node.name}
        return known

    def _targets(self, targets: Sequence[ast.expr | None], known: frozenset[str]) -> frozenset[str]:
        """Return the names that are set; what is set within something (`a[i]`) reads that."""
        found: set[str] = set()
        for target in targets:
            if isinstance(target, ast.Name):
                found.add(target.id)
            elif isinstance(target, (ast.Tuple, ast.List)):
                found |= self._targets(target.elts, known)
            elif isinstance(target, ast.Starred):
                found |= self._targets([target.value], known)
            elif target is not None:
                reads = [n for n in ast.walk(target) if isinstance(n, ast.Name)]
                self.read |= {n.id for n in reads} - known
        return frozenset(found)

    def _expression(self, node: ast.expr, known: frozenset[str]) -> None:
        self._add(ast.Expression(node), known)

    def _add(self, tree: ast.Module | ast.Expression, known: frozenset[str]) -> None:
        mode = "exec" if isinstance(tree, ast.Module) else "eval"
        code = compile(tree, "<cell>", mode, self._flags, dont_inherit=True)
        for inner in _nested(code):
            for instruction in dis.get_instructions(inner):
                if instruction.opname in _READS and instruction.argval not in known:
                    self.read.add(instruction.argval)


def _unset(statement: ast.stmt) -> set[str]:
    """Return the names that are perhaps gone after a statement: deleted, or an exception's."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
            found.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)
