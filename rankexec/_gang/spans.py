"""Many numbers, said in short."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TypeAlias

from rankexec._gang.identity import Number

__all__ = ("Span", "spans_of")

Span: TypeAlias = "tuple[int, int]"
"""Numbers from one up to another."""


def spans_of(numbers: Sequence[int], kept: Container[Number]) -> list[Span]:
    """Return sorted numbers as few spans; numbers that nobody has may be in them."""
    spans: list[Span] = []
    start = stop = -1
    for number in numbers:
        near = start >= 0 and number - stop < _NEAR
        if near and not any(between in kept for between in range(stop, number)):
            stop = number + 1
            continue
        if start >= 0:
            spans.append((start, stop))
        start, stop = number, number + 1
    return [*spans, (start, stop)] if start >= 0 else spans


_NEAR = 100
