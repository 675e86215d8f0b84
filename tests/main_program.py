"""What test_main_module runs as `__main__`, in every way in which a program can be run.

It defines one of each kind of thing that people define there, has ranks use it, and prints what
came of it as JSON. It must run once: ranks never run it again.
"""

import collections
import dataclasses
import enum
import functools
import json
import sys
import typing

from rankexec import RankedExecutor

print("the program runs")

FACTOR = 3
COUNT = 5


class Color(enum.Enum):
    """An enum."""

    RED = "red"


class Flags(enum.IntFlag):
    """Another kind of enum."""

    A = 1
    B = 2


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024  # people do write it


class Typed(typing.NamedTuple):
    """The other kind of named tuple."""

    value: int


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int
    color: Color = Color.RED

    def moved(self) -> "Point":
        """Return another one."""
        return dataclasses.replace(self, x=self.x + FACTOR)

    @classmethod
    def origin(cls) -> "Point":
        """Return the first one."""
        return cls(0)

    @property
    def double(self) -> int:
        """Return twice x."""
        return 2 * self.x


class Special(Point):
    """A class that needs its own cell for super()."""

    def moved(self) -> Point:
        """Move further."""
        point = super().moved()
        point.x += 100
        return point


class Refused(Exception):
    """An exception whose arguments are not its own."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


def even(number: int) -> bool:
    """Recurse into another function."""
    return number == 0 or odd(number - 1)


def odd(number: int) -> bool:
    """Recurse back."""
    return number != 0 and even(number - 1)


def make_adder(first: int):
    """Return a closure."""

    def adder(second: int) -> int:
        return first + second + FACTOR

    return adder


def twice(fn):
    """Decorate."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return 2 * fn(*args, **kwargs)

    return wrapper


@twice
def decorated(number: int, *, plus: int = 1) -> int:
    """Be decorated."""
    return number + plus


def numbers(end: int):
    """Generate."""
    yield from range(end)


def count() -> int:
    """Change a global variable."""
    global COUNT  # noqa: PLW0603  # that is what is tested
    COUNT += 1
    return read_count()


def read_count() -> int:
    """See what another function has changed."""
    return COUNT


def refuse() -> None:
    """Raise."""
    raise Refused(7, "no")


def use_imports() -> str:
    """Use a name that only `imports=` brings."""
    return str(fractions_of_ranks.Fraction(1, 2))  # noqa: F821  # that is what is tested


def use_needed() -> int:
    """Look a name up in `__main__`, as a library would."""
    return sys.modules["__main__"].COUNT


def name_of_main() -> str:
    """Return the name of the module that this function lives in."""
    return __name__


def summary(value: object) -> object:
    """Return what can be written down, and whether the types are the ones of this module."""
    if isinstance(value, list):
        return [summary(item) for item in value]
    if isinstance(value, Point):
        same = type(value) in (Point, Special) and value.color is Color.RED
        return [type(value).__name__, value.x, same]
    return value


def check(executor: RankedExecutor) -> dict[str, object]:
    """Let ranks use everything."""
    global FACTOR  # noqa: PLW0603  # that is what is tested

    def run(fn, *args, **kwargs):
        return summary(executor.submit(fn, *args, **kwargs).result())

    found = {
        "lambda": run(lambda number: number * FACTOR, 2),
        "closure": run(make_adder(1), 2),
        "mutual recursion": run(even, 10),
        "decorated": run(decorated, 4, plus=2),
        "partial": run(functools.partial(decorated, plus=3), 4),
        "generator": run(lambda: list(numbers(3))),
        "class": run(Point, 4),
        "classmethod": run(Special.origin),
        "bound method": run(Point(1).moved),
        "super": run(Special(1).moved),
        "property": run(lambda point: point.double, Point(4)),
        "dataclass": run(lambda point: point == Point(4), Point(4)),
        "enum": run(lambda color: color is Color.RED, Color.RED),
        "enum back": [color is Color.RED for color in executor.submit(lambda: Color.RED).result()],
        "flags": [f is Flags.B or f == Flags.B for f in executor.submit(lambda: Flags.B).result()],
        "namedtuple": [isinstance(p, Pair) for p in executor.submit(Pair, 1, 2).result()],
        "NamedTuple": [isinstance(t, Typed) for t in executor.submit(Typed, 1).result()],
        "shared globals": run(count),
        "shared globals again": run(count),
        "count in the caller": COUNT,
        "name": run(name_of_main),
        "imports": run_with(
            executor, use_imports, imports="import fractions as fractions_of_ranks"
        ),
        "need": run_with(executor, use_needed, need="COUNT"),
        "left by imports": "fractions_of_ranks" in globals(),
    }
    FACTOR = 10
    found["today's value"] = run(lambda number: number * FACTOR, 2)
    found["today's value in a method"] = run(Point(1).moved)
    FACTOR = 3
    Point.triple = lambda self: 3 * self.x
    found["today's methods"] = run(lambda point: point.triple(), Point(4))
    del Point.triple
    try:
        run(refuse)
    except Refused as error:
        found["exception"] = [type(error) is Refused, error.code, str(error)]
    return found


def run_with(executor: RankedExecutor, fn, **options):
    """Run with other options."""
    return executor.options(**options).submit(fn).result()


def members(cls: type) -> dict[str, int]:
    """Return which objects a class holds, but for what Python notes when it pickles an instance."""
    return {name: id(value) for name, value in vars(cls).items() if name != "__slotnames__"}


def main() -> None:
    """Check both modes, and that the classes of this module are what they were."""
    global COUNT  # noqa: PLW0603  # both modes begin with the same value
    classes = [Color, Flags, Pair, Typed, Point, Special, Refused]
    before = [members(cls) for cls in classes]
    found = {}
    for caller_rank in (0, None):
        COUNT = 5
        with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
            found[str(caller_rank)] = check(executor)
    found["classes unchanged"] = [members(cls) for cls in classes] == before
    print(json.dumps(found))
