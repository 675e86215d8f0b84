"""What a cell is made of: awaits, magics, a semicolon at its end."""

from __future__ import annotations

import ast
import inspect
import tokenize

__all__ = ("ends_silently", "has_await", "ipython_calls")


def has_await(source: str) -> bool:
    """Return whether a cell awaits outside any function, so that only an event loop can run it."""
    if "await" not in source and "async" not in source:  # most have none: spare them the compiler
        return False
    try:
        code = compile(source, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError:
        return False
    return bool(code.co_flags & inspect.CO_COROUTINE)


def ends_silently(source: str) -> bool:
    """Return whether a cell ends with a semicolon: its last value is not to be displayed."""
    if ";" not in source:
        return False
    from IPython.core.displayhook import DisplayHook

    try:
        return bool(DisplayHook.semicolon_at_end_of_expression(source))
    except (SyntaxError, tokenize.TokenError):  # to be said by whoever compiles it
        return False


def ipython_calls(tree: ast.AST) -> list[tuple[ast.Name, str]]:
    """Return where a cell asks for the shell, and how: what magics, `!` and `?` have become."""
    shown: dict[ast.Name, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            shown.setdefault(node, "get_ipython()")
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        inner = node.func.value
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and node.args:
            sign = _SIGNS.get(node.func.attr)
            first = node.args[0]
            if inner.func.id == "get_ipython" and sign and isinstance(first, ast.Constant):
                shown[inner.func] = f"{sign}{first.value!s}"
    return list(shown.items())


_SIGNS = {"run_line_magic": "%", "run_cell_magic": "%%", "system": "!", "getoutput": "!"}
