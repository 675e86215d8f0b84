"""Which names of `__main__` are read by what is not pickled, and that they are looked for once."""

from __future__ import annotations

import pytest

from rankexec._gang.reading import names_read_by

READS = {
    "a function": "it = lambda: value",
    "one that sets": "def it():\n  global value\n  value = 1",
    "a closure": "def make(f): return lambda: f()\nit = make(lambda: value)",
    "an empty closure": "def make():\n  def f(): value, g\n  return f\n  g = 1\nit = make()",
    "a metaclass": "class M(type):\n  def m(cls): value\nclass A(metaclass=M): pass\nit = A",
    "an object": "class A:\n  def m(self): value\nit = A()",
    "an attribute": "class A:\n  def m(self): value\nclass B: pass\nit = B()\nit.a = A()",
    "attributes of a library's object": "import types\nit = types.SimpleNamespace(f=lambda: value)",
    "a dict in it": "import types\nit = types.SimpleNamespace(d={1: lambda: value})",
    "a list": "it = [1, lambda: value]",
    "a single dispatch": (
        "import functools\n@functools.singledispatch\ndef it(x): pass\n"
        "@it.register\ndef _(x: int): value"
    ),
    "a partial method": (
        "import functools\nclass A:\n  def m(self, x): value\n"
        "  p = functools.partialmethod(m, 1)\nit = A"
    ),
    "a cached one": "import functools\nit = functools.lru_cache(lambda: value)",
    "a cycle": "class A: pass\nit = A()\nit.me = it\nit.f = lambda: value",
}
"""The code that binds `it`, which reads `value`."""

READS_NOT = {
    "data": "it = [1, 'value', {2: 3}]",
    "a local variable": "def it(value): return value",
    "a module": "import os as it",
    "many items": "it = [lambda: value] * 2000",
    "a list with methods": (
        "class L(list):\n  def __len__(self): raise ZeroDivisionError\n  __iter__ = __len__\n"
        "it = [L([len])]"
    ),
    "what raises at every turn": (
        "class it:\n  def __getattr__(self, name): raise ZeroDivisionError\n"
        "  __dict__ = property(lambda self: 1 / 0)\nit = it()"
    ),
}


@pytest.mark.parametrize("code", READS.values(), ids=READS)
def test_reads(main, code) -> None:
    """It is found."""
    exec(code, main)
    assert "value" in names_read_by(main["it"])


@pytest.mark.parametrize("code", READS_NOT.values(), ids=READS_NOT)
def test_reads_not(main, code) -> None:
    """Nothing is found, and nothing raised."""
    exec(code, main)
    assert "value" not in names_read_by(main["it"])


def test_a_model(main) -> None:
    """What its layers read is found: they lie in a dict."""
    torch = pytest.importorskip("torch")
    main["torch"] = torch
    exec("class Layer(torch.nn.Module):\n  def forward(self, x): return x * scale", main)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(main["Layer"]()))
    assert "scale" in names_read_by(model)


def test_each_thing_once(main) -> None:
    """What many functions share is not looked through for each of them."""
    looked = []

    class Shared:
        __dict__ = property(lambda _: looked.append(1) or {})

    exec("def make(shared):\n  return lambda: shared", main)
    shared = Shared()
    names_read_by([main["make"](shared) for _ in range(10)])
    assert len(looked) == 1
