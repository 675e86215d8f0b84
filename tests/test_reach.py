"""Which of the notebook's variables a cell reads."""

from __future__ import annotations

import ast
import textwrap

import pytest

from rankexec._notebook.reach import names_assigned, names_read_and_set

CASES = {
    "a = b": "b",
    "a": "a",
    "a = 1\na": "",
    "a += 1": "a",
    "a[0] = 1": "a",
    "a.b = 1": "a",
    "a[i], c = 1, 2\nc": "a i",
    "(a, *b), c = x\na, b, c": "x",
    "a: int = 1\na": "int",
    "a: int\na": "a int",
    "del a": "a",
    "a = 1\ndel a\na": "a",
    "import a.b, c as d\nfrom e import f\na, c, d, e, f": "c e",
    "from e import *\na": "a",
    "if p:\n  a = 1\nelse:\n  a = 2\na": "p",
    "if p:\n  a = 1\na": "a p",
    "for i in r:\n  s = i\n  if s: break\nelse:\n  t\ni": "i r t",
    "while p:\n  p = a\n  continue": "a p",
    "with o as f:\n  a = f\na, f": "a o",
    "try:\n  a = 1\nexcept E as e:\n  e, a\nelse:\n  a\nfinally:\n  b": "E a b",
    "match v:\n  case [x, *y]: x, y\n  case {'k': z, **w} if g: z, w\n  case C(): c": "C c g v",
    "def f(n=d): return f(n) + g\nf(1)": "d g",
    "@f.register\ndef f(): pass": "f",
    "@d\nclass A(B):\n  c = e\n  def m(self): return A, h": "A B d e h",
    "[i for i in r if i in s]": "r s",
    "lambda x: x + y": "y",
    "def f():\n  global n\n  n = 1\n  def g(): return k\n  return g": "k",
    "def f():\n  class A:\n    b = c\n  return A": "c",
    "print(f'{a!r:>{w}}')": "a print w",
    "(a := 1)\na": "a",
    "'text a'\n...": "",
}


@pytest.mark.parametrize(("cell", "names"), CASES.items())
def test_names_read(cell, names) -> None:
    """Those that a cell reads and has not set for certain before."""
    assert names_read_and_set(ast.parse(cell), 0)[0] == set(names.split())


@pytest.mark.parametrize(
    ("cell", "names"),
    {
        "a = b, (c, *d) = e": "a b c d",
        "import a.b, c as d\nfrom e import f": "a d f",
        "def a(): b = 1\nclass C: d = 1": "a C",
        "if x: a = b = 1\nelse: a = 2": "a",
        "for a in x: b = 1": "",
        "while x: a = 1": "",
        "try: a = 1\nexcept E as b: pass": "",
        "with x as a, y as b: c = 1": "a",
        "with x as (a, b): pass": "",
        "a = b = 1\ndel a": "b",
        "a = b = c = 1\ndel (a, b)": "c",
        "a = b = 1\nfor x in y: del a": "b",
        "a = b = 1\ntry: x()\nexcept E as a: pass": "b",
        "a = b = 1\nif x: del a": "b",
        "a = 1\ndel a\na = 2": "a",
        "match x:\n  case a: b = 1": "",
        "[a := 1 for b in c]": "",
    }.items(),
)
def test_names_set(cell, names) -> None:
    """Those that a cell has set for certain if it comes to its end."""
    assert names_read_and_set(ast.parse(cell), 0)[1] == set(names.split())


def test_names_assigned() -> None:
    """Those that a cell sets, functions that say so included; not what is local somewhere."""
    cell = """
        import a.b
        c, (d, *e) = x
        for f in y: pass
        def g(): h = 1
        def i():
            global j
            j = 2
        class K: m = 1
        [n for n in y]
        (o := 1)
    """
    code = compile(textwrap.dedent(cell), "<cell>", "exec")
    assert names_assigned(code) == set("acdefgijKo")
