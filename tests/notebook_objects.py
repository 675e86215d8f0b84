"""What people define in notebook cells, and what of it arrives in a rank: the table.

Each kind is a cell of source text and an expression that is true where the thing works.
`test_shipping` runs all of them on ranks; docs/shipping.md shows the table.
"""

from __future__ import annotations

from notebook_kinds import Kind

FUNCTIONS = [
    Kind(
        "a lambda that uses a variable",
        """\
factor = 3
f = lambda x: x * factor""",
        "f(2) == 6",
    ),
    Kind(
        "functions that use functions",
        """\
def inner(x):
    return x + offset
def outer(x):
    return inner(x) * 2
offset = 1""",
        "outer(1) == 4",
    ),
    Kind(
        "a function that defines a class whose body uses variables",
        """\
unit, width = 'm', 3
def measured():
    class Length:
        symbol = unit
        class Wide:
            sizes = [width]
    return Length.symbol * Length.Wide.sizes[0]""",
        "measured() == 'mmm'",
    ),
    Kind(
        "mutual recursion",
        """\
def even(n):
    return n == 0 or odd(n - 1)
def odd(n):
    return n != 0 and even(n - 1)""",
        "even(10) and not odd(10)",
    ),
    Kind(
        "400 closures, each around the one before",
        """\
def chain(depth):
    def around(inner):
        return lambda: inner() + 1
    f = lambda: 0
    for _ in range(depth):
        f = around(f)
    return f
deep = chain(400)""",
        "deep() == 400",
    ),
    Kind(
        "a decorated function, its name and `__wrapped__`",
        """\
import functools
def twice(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return 2 * fn(*args)
    return wrapper
@twice
def decorated(x):
    "Doc."
    return x + 1""",
        "(decorated(1), decorated.__wrapped__(1)) == (4, 2)"
        " and (decorated.__name__, decorated.__doc__) == ('decorated', 'Doc.')",
    ),
    Kind(
        "a decorator that is an object",
        """\
class Counted:
    def __init__(self, fn):
        self.fn, self.calls = fn, 0
    def __call__(self, *args):
        self.calls += 1
        return self.fn(*args)
@Counted
def counted(x):
    return x""",
        "counted(5) == 5 and counted.calls == 1",
    ),
    Kind(
        "defaults, keyword-only ones too",
        """\
default = [1]
def f(a, b=default, *, c=default):
    return b is c and b is default""",
        "f(1)",
    ),
    Kind(
        "positional-only parameters, `inspect.signature`",
        """\
import inspect
def f(a, /, b, *args, c=1, **kw): ...""",
        "str(inspect.signature(f)) == '(a, /, b, *args, c=1, **kw)'",
    ),
    Kind(
        "attributes of a function",
        """\
def f(): ...
f.version = [1, 2]""",
        "f.version == [1, 2]",
    ),
    Kind(
        "annotations",
        """\
class Unit: ...
def f(x: Unit, y: list[int]) -> Unit: ...""",
        "f.__annotations__ == {'x': Unit, 'y': list[int], 'return': Unit}",
    ),
    Kind(
        "annotations in strings",
        """\
import typing
class Later: ...
def f(x: "Later", y: "typing.Optional[Later]") -> typing.List["Later"]: ...
hints_of = lambda: typing.get_type_hints(f)""",
        "hints_of()['x'].__name__ == 'Later'"
        " and hints_of()['return'].__args__[0] is hints_of()['x']",
    ),
    Kind(
        "two closures that share a variable",
        """\
def make():
    count = 0
    def add():
        nonlocal count
        count += 1
    def get():
        return count
    return add, get
add, get = make()""",
        "(add(), add(), get())[-1] == 2",
    ),
    Kind(
        "two closures that share a variable, passed as arguments",
        """\
def make():
    count = 0
    def add():
        nonlocal count
        count += 1
    return add, lambda: count
pair = make()""",
        "(value[0](), value[1]())[-1] == 1",
        argument="pair",
    ),
    Kind(
        "a recursive closure",
        """\
def make():
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)
    return factorial
factorial = make()""",
        "factorial(5) == 120",
    ),
    Kind(
        "a closure over a variable that has no value yet",
        """\
def make():
    def read():
        return unset
    if False:
        unset = 1
    return read
read = make()
def is_unset():
    try:
        return read()
    except NameError:
        return True""",
        "is_unset()",
    ),
    Kind(
        "a function that changes a global variable",
        """\
total = 0
def add():
    global total
    total += 1
    return read()
def read():
    return total""",
        "add() == total and total > 0",
    ),
    Kind(
        "a function defined anew by running its cell again",
        """\
def g():
    return 'old'
def f():
    return g()
def g():
    return 'new'""",
        "f() == 'new'",
    ),
    Kind(
        "`functools.partial`",
        """\
from functools import partial
p = partial(pow, 2)""",
        "p(5) == 32",
    ),
    Kind(
        "a partial of a partial with keywords",
        """\
from functools import partial
def f(a, b, *, c):
    return a + b + c
p = partial(partial(f, 1), c=3)""",
        "p(2) == 6 and p.keywords == {'c': 3}",
    ),
    Kind(
        "`lru_cache`, recursive",
        """\
from functools import lru_cache
@lru_cache(maxsize=50)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
fib(30)""",
        "fib(40) == 102334155 and fib.cache_info().maxsize == 50",
        arrives="with an empty cache",
    ),
    Kind(
        "`functools.cache` on a method",
        """\
import functools
class Cached:
    @functools.cache
    def half(self, x):
        return x / 2
cached = Cached()""",
        "cached.half(3) == 1.5",
    ),
    Kind(
        "`singledispatch`",
        """\
from functools import singledispatch
class Shape: ...
class Circle(Shape): ...
@singledispatch
def name(x):
    return 'object'
@name.register
def _(x: int):
    return 'int'
@name.register(Shape)
def _(x):
    return 'shape'""",
        "(name(1), name('x'), name(Circle())) == ('int', 'object', 'shape')"
        " and Shape in name.registry",
    ),
    Kind(
        "a generator function",
        """\
def numbers(n):
    yield from range(n)""",
        "list(numbers(3)) == [0, 1, 2]",
    ),
    Kind(
        "a coroutine function and an asynchronous generator function",
        """\
import asyncio, threading
async def ticks():
    for i in range(3):
        yield i
async def collect():
    return [i async for i in ticks()]
def run(coroutine):
    # In a notebook the main thread has a loop already.
    values = []
    thread = threading.Thread(target=lambda: values.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return values[0]""",
        "run(collect()) == [0, 1, 2]",
    ),
    Kind(
        "a context manager made with `contextlib`",
        """\
import contextlib
@contextlib.contextmanager
def doubled(x):
    yield 2 * x
def use():
    with doubled(4) as y:
        return y""",
        "use() == 8",
    ),
    Kind(
        "a function that imports, and one that uses an imported module's submodule",
        """\
import os.path
import xml.dom
def f():
    import json
    return json.loads('1'), os.path.sep, xml.dom.Node.TEXT_NODE""",
        "f() == (1, '/', 3)",
    ),
    Kind(
        "operators and methods",
        """\
import operator
get = operator.itemgetter(1)
up = 'x'.upper""",
        "get([1, 2]) == 2 and up() == 'X'",
    ),
    Kind(
        "a comprehension and a walrus in a function",
        """\
limit = 3
def f():
    return [y for x in range(5) if (y := x * limit) > limit]""",
        "f() == [6, 9, 12]",
    ),
    Kind(
        "a function with its source",
        """\
def named():
    return named.__qualname__, named.__module__""",
        "named() == ('named', '__main__')",
    ),
    Kind(
        "a function with type parameters",
        """\
def first[T](items: list[T]) -> T:
    return items[0]""",
        "first([3]) == 3 and first.__type_params__[0].__name__ == 'T'",
        python=(3, 12),
    ),
    Kind(
        "a function for a pool that the rank starts",
        """\
import multiprocessing
def square(x):
    return x * x
def with_pool():
    with multiprocessing.get_context('fork').Pool(1) as pool:
        return pool.map(square, [1, 2])""",
        "__import__('pickle').loads(__import__('pickle').dumps(square)) is square",
        arrives="found by its name there, too: `pickle` needs that",
    ),
    Kind(
        "a function with `pydantic.validate_call`",
        """\
import pydantic
not_used = open('/dev/null')
class Settings(pydantic.BaseModel):
    rate: int
@pydantic.validate_call(validate_return=True)
def times(x: 'int', settings: 'Settings') -> 'int':
    return x * settings.rate""",
        "times('2', {'rate': '3'}) == 6",
        needs="pydantic",
    ),
]

CLASSES = [
    Kind(
        "a class, its instances, a base class",
        """\
class Base:
    def who(self):
        return type(self).__name__
class Child(Base):
    def __init__(self, x):
        self.x = x
child = Child(3)""",
        "child.who() == 'Child' and isinstance(child, Base) and child.x == 3",
    ),
    Kind(
        "an instance as an argument",
        """\
class Box:
    def __init__(self, content):
        self.content = content""",
        "isinstance(value, Box) and value.content == 1",
        argument="Box(1)",
    ),
    Kind(
        "one object, reached as a global variable and as an argument",
        "shared = {'a': [1]}",
        "value is shared and value['a'] is shared['a']",
        argument="shared",
    ),
    Kind(
        "`super()`, class methods, static methods, properties",
        """\
class A:
    rate = 2
    def f(self):
        return 1
    @classmethod
    def c(cls):
        return cls.rate
    @staticmethod
    def s():
        return 3
class B(A):
    rate = 4
    def f(self):
        return super().f() + 10
    @property
    def p(self):
        return self._p
    @p.setter
    def p(self, value):
        self._p = value
def use():
    b = B()
    b.p = 5
    return b.f(), b.c(), b.s(), b.p""",
        "use() == (11, 4, 3, 5)",
    ),
    Kind(
        "two base classes, a mixin",
        """\
class M:
    def f(self):
        return 'M' + super().f()
class N:
    def f(self):
        return 'N'
class MN(M, N): ...""",
        "MN().f() == 'MN' and [c.__name__ for c in MN.__mro__] == ['MN', 'M', 'N', 'object']",
    ),
    Kind(
        "a subclass of a builtin",
        """\
class Names(dict):
    def __missing__(self, key):
        return key.upper()
names = Names(a=1)
names.extra = 2""",
        "names['b'] == 'B' and names == {'a': 1} and names.extra == 2",
    ),
    Kind(
        "a nested class",
        """\
class Outer:
    class Inner:
        x = 1
inner = Outer.Inner()""",
        "type(inner) is Outer.Inner and Outer.Inner.__qualname__ == 'Outer.Inner'",
    ),
    Kind(
        "a class made in a function",
        """\
def make(n):
    class Local:
        def get(self):
            return n
    return Local
Local = make(7)""",
        "Local().get() == 7",
    ),
    Kind(
        "a bound method",
        """\
class Adder:
    def __init__(self, n):
        self.n = n
    def add(self, x):
        return self.n + x
add = Adder(2).add""",
        "add(3) == 5",
    ),
    Kind(
        "an instance of a class that was defined anew",
        """\
class Thing:
    version = 1
old = Thing()
class Thing:
    version = 2
new = Thing()""",
        "(old.version, new.version) == (1, 2) and isinstance(new, Thing)"
        " and not isinstance(old, Thing)",
    ),
    Kind(
        "a metaclass",
        """\
class Recorded(type):
    seen = []
    def __new__(meta, name, bases, namespace):
        namespace.setdefault('tag', name.lower())
        assert 'value' in namespace, 'it wants content'
        return super().__new__(meta, name, bases, namespace)
    def __init__(cls, name, bases, namespace):
        super().__init__(name, bases, namespace)
        Recorded.seen.append(name)
    def __call__(cls, *args):
        made = super().__call__(*args)
        made.made_by = 'Recorded'
        return made
class One(metaclass=Recorded):
    value = 1
class Two(One):
    value = 2""",
        "Recorded.seen == ['One', 'Two'] and (One.tag, Two.tag) == ('one', 'two')"
        " and type(Two) is Recorded and Two().made_by == 'Recorded'",
        arrives="as it is; it does not run again",
    ),
    Kind(
        "a metaclass that forbids changes",
        """\
class Frozen(type):
    def __setattr__(cls, name, value):
        raise AttributeError(name)
class Constants(metaclass=Frozen):
    e = 2.7
def cannot_change():
    try:
        Constants.e = 3
    except AttributeError:
        return True""",
        "Constants.e == 2.7 and cannot_change()",
    ),
    Kind(
        "classes that are equal, by their metaclass",
        """\
class AllEqual(type):
    def __eq__(cls, other):
        return True
    def __hash__(cls):
        return 1
class Left(metaclass=AllEqual):
    x = 1
class Right(metaclass=AllEqual):
    x = 2""",
        "(Left.x, Right.x) == (1, 2)",
        arrives="**one class**: cloudpickle compares them to tell them apart",
        differs=True,
    ),
    Kind(
        "`__init_subclass__`, with a registry",
        """\
class Plugin:
    registry = {}
    def __init_subclass__(cls, *, key, **kwargs):
        super().__init_subclass__(**kwargs)
        assert cls.size, 'it wants content'
        Plugin.registry[key] = cls
class First(Plugin, key='first'):
    size = 1
class Second(Plugin, key='second'):
    size = 2""",
        "list(Plugin.registry) == ['first', 'second'] and Plugin.registry['second'] is Second",
        arrives="as it is; it does not run again",
    ),
    Kind(
        "`__init_subclass__` for classes that the rank defines",
        """\
class Registered:
    names = []
    def __init_subclass__(cls):
        Registered.names.append(cls.__name__)
class Before(Registered): ...
def define():
    class After(Registered): ...
    return Registered.names""",
        "define()[:2] == ['Before', 'After']",
    ),
    Kind(
        "`__set_name__` and other descriptors",
        """\
class Positive:
    def __set_name__(self, owner, name):
        self.name = '_' + name
    def __get__(self, obj, owner=None):
        return getattr(obj, self.name)
    def __set__(self, obj, value):
        if value <= 0:
            raise ValueError(self.name)
        setattr(obj, self.name, value)
class Account:
    balance = Positive()
    def __init__(self, balance):
        self.balance = balance
account = Account(3)
def refuses():
    try:
        account.balance = -1
    except ValueError as error:
        return str(error) == '_balance'""",
        "account.balance == 3 and refuses()",
    ),
    Kind(
        "`__slots__`",
        """\
class P:
    __slots__ = ('x', 'y')
    def __init__(self, x):
        self.x = x
p = P(1)""",
        "p.x == 1 and not hasattr(p, 'y') and not hasattr(p, '__dict__')",
    ),
    Kind(
        "`__slots__` with private names",
        """\
class Safe:
    __slots__ = ('__code', '__dict__')
    def __init__(self):
        self.__code = 5
    def code(self):
        return self.__code
safe = Safe()
safe.z = 1""",
        "safe.code() == 5 and safe.z == 1 and '_Safe__code' not in vars(safe)",
    ),
    Kind(
        "`__slots__` in a base and its child",
        """\
class S:
    __slots__ = 'a'
class T(S):
    __slots__ = ('b', '__weakref__')
t = T()
t.a, t.b = 1, 2""",
        "(t.a, t.b) == (1, 2) and not hasattr(t, '__dict__')",
    ),
    Kind(
        "an abstract base class and its virtual subclasses",
        """\
import abc
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def area(self):
        return 4
@Shape.register
class Round: ...
def is_abstract():
    try:
        Shape()
    except TypeError:
        return True""",
        "Square().area() == 4 and isinstance(Round(), Shape) and is_abstract()",
    ),
    Kind(
        "a generic class and a protocol",
        """\
import typing
T = typing.TypeVar('T')
class Stack(typing.Generic[T]):
    def __init__(self):
        self.items = []
@typing.runtime_checkable
class HasArea(typing.Protocol):
    def area(self) -> float: ...
class Disc:
    def area(self):
        return 3.0
stack = Stack[int]()""",
        "isinstance(stack, Stack) and isinstance(Disc(), HasArea) and Stack.__parameters__ == (T,)",
    ),
    Kind(
        "annotations of a class that name it in strings",
        """\
import dataclasses, typing
@dataclasses.dataclass
class Node:
    value: int
    next: typing.Optional['Node'] = None
nodes = Node(1, Node(2))""",
        "typing.get_type_hints(type(nodes))['next'].__args__[0] is type(nodes)",
    ),
    Kind(
        "`__getattr__`, `__call__`, `__getitem__`, operators",
        """\
class Flexible:
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return name
    def __call__(self, x):
        return x
    def __add__(self, other):
        return 'sum'
    def __getitem__(self, key):
        return key
flexible = Flexible()""",
        "(flexible.abc, flexible(1), flexible + 1, flexible[2]) == ('abc', 1, 'sum', 2)",
    ),
    Kind(
        "`__getstate__` and `__setstate__`",
        """\
class Model:
    def __init__(self):
        self.weights, self.scratch = [1], object()
    def __getstate__(self):
        return {'weights': self.weights}
    def __setstate__(self, state):
        self.__dict__.update(state, scratch=None)
model = Model()""",
        "model.weights == [1] and hasattr(model, 'scratch')",
    ),
    Kind(
        "`__reduce__`, `__new__` with arguments",
        """\
class Money:
    def __new__(cls, amount, unit):
        self = super().__new__(cls)
        self.amount, self.unit = amount, unit
        return self
    def __getnewargs__(self):
        return self.amount, self.unit
class Way:
    def __init__(self, n):
        self.n = n
    def __reduce__(self):
        return Way, (self.n,)
money, way = Money(5, 'EUR'), Way(6)""",
        "(money.amount, money.unit, way.n) == (5, 'EUR', 6)",
    ),
    Kind(
        "a set and a dict of instances with `__hash__`",
        """\
class Key:
    def __init__(self, k):
        self.k = k
    def __hash__(self):
        return hash(self.k)
    def __eq__(self, other):
        return self.k == other.k
keys = {Key(1), Key(2)}
by_key = {Key(3): 'three'}""",
        "Key(1) in keys and by_key[Key(3)] == 'three'",
    ),
    Kind(
        "`__hash__`, `__setstate__` and `__new__` that read global variables",
        """\
salt = 5
class Salted:
    def __new__(cls):
        self = super().__new__(cls)
        self.new = salt
        return self
    def __setstate__(self, state):
        self.__dict__.update(state, loaded=salt)
    def __hash__(self):
        return salt
    def __eq__(self, other):
        return True
salted = {Salted(): 'x'}""",
        "value[Salted()] == 'x' and next(iter(value)).new == salt",
        argument="salted",
    ),
    Kind(
        "an instance that holds itself, a cycle of instances",
        """\
class Cycle: ...
a, b = Cycle(), Cycle()
a.other, b.other, a.me = b, a, a""",
        "a.other.other is a and a.me is a",
    ),
    Kind(
        "`cached_property`",
        """\
import functools
class Lazy:
    @functools.cached_property
    def value(self):
        return [1]
lazy = Lazy()
filled = Lazy()
filled.value.append(2)""",
        "lazy.value is lazy.value and filled.value == [1, 2]",
    ),
    Kind(
        "`singledispatchmethod` and `partialmethod`",
        """\
import functools
class Printer:
    @functools.singledispatchmethod
    def show(self, x):
        return 'any'
    @show.register
    def _(self, x: int):
        return 'int'
    def scale(self, x, by):
        return x * by
    double = functools.partialmethod(scale, by=2)
printer = Printer()""",
        "(printer.show(1), printer.show(''), printer.double(4)) == ('int', 'any', 8)",
    ),
    Kind(
        "an exception whose `__init__` takes other arguments",
        """\
class Refused(Exception):
    def __init__(self, *, code):
        super().__init__(f'code {code}')
        self.code = code
refused = Refused(code=3)""",
        "refused.code == 3 and str(refused) == 'code 3'",
    ),
    Kind(
        "a class that pickle finds by its name",
        """\
class Row:
    def __init__(self, x):
        self.x = x
row = Row(1)""",
        "__import__('pickle').loads(__import__('pickle').dumps(row)).x == 1",
        arrives="so DataLoader workers that a rank starts can send instances of it",
    ),
    Kind(
        "a class with type parameters",
        """\
class Pair[A, B]:
    left: A
int_pair = Pair[int, str]()""",
        "[p.__name__ for p in Pair.__type_params__] == ['A', 'B']",
        python=(3, 12),
    ),
]

VALUES = [
    Kind(
        "a dataclass",
        """\
import dataclasses
@dataclasses.dataclass(order=True)
class Config:
    rate: float
    layers: list = dataclasses.field(default_factory=list)
    name: str = dataclasses.field(default='x', repr=False, metadata={'help': 'a name'})
config = Config(0.1)""",
        "config == Config(0.1, []) and config < Config(0.2)"
        " and dataclasses.asdict(config)['name'] == 'x'"
        " and dataclasses.replace(config, rate=2).rate == 2",
    ),
    Kind(
        "a dataclass's fields",
        """\
import dataclasses
@dataclasses.dataclass
class Options:
    needed: int
    given: int = 3
    made: list = dataclasses.field(default_factory=list)
def required():
    return [f.name for f in dataclasses.fields(Options) if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING]""",
        "required() == ['needed']"
        " and dataclasses.fields(Options)[2].default_factory is list"
        " and dataclasses.fields(Options)[0].metadata == {}",
        arrives="as they are: `default is MISSING` holds",
    ),
    Kind(
        "a dataclass with `KW_ONLY`, `InitVar`, `ClassVar`, `__post_init__`",
        """\
import dataclasses, typing
@dataclasses.dataclass
class Job:
    count: typing.ClassVar[int] = 5
    name: str
    _: dataclasses.KW_ONLY
    size: dataclasses.InitVar[int] = 1
    area: int = 0
    def __post_init__(self, size):
        self.area = size * size
class_vars = Job.__annotations__""",
        "Job('a', size=3).area == 9 and class_vars['_'] is dataclasses.KW_ONLY"
        " and [f.name for f in dataclasses.fields(Job)] == ['name', 'area']",
    ),
    Kind(
        "a frozen dataclass with slots",
        """\
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0
point = Point(1)
def is_frozen():
    try:
        point.x = 2
    except dataclasses.FrozenInstanceError:
        return True""",
        "point == Point(1, 0) and hash(point) == hash(Point(1)) and is_frozen()"
        " and not hasattr(point, '__dict__')",
    ),
    Kind(
        "a dataclass that inherits",
        """\
import dataclasses
@dataclasses.dataclass
class Low:
    a: int = 1
@dataclasses.dataclass
class High(Low):
    b: int = 2""",
        "High(b=3) == High(1, 3) and [f.name for f in dataclasses.fields(High)] == ['a', 'b']",
    ),
    Kind(
        "a named tuple of either kind",
        """\
import collections, typing
XY = collections.namedtuple('XY', 'x y', defaults=[0])
class UV(typing.NamedTuple):
    u: int
    v: int = 5
    def total(self):
        return self.u + self.v
xy, uv = XY(1), UV(1)""",
        "(xy, uv) == ((1, 0), (1, 5)) and uv.total() == 6"
        " and xy._replace(x=2).x == 2 and UV._field_defaults == {'v': 5}",
    ),
    Kind(
        "a `TypedDict`",
        """\
import typing
class Movie(typing.TypedDict, total=False):
    title: str
class Long(Movie):
    hours: int
movie = Long(title='x', hours=3)""",
        "movie == {'title': 'x', 'hours': 3} and Long.__optional_keys__ >= {'title'}",
    ),
    Kind(
        "an enum",
        """\
import enum
class Color(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = 1
    def pretty(self):
        return self.name.lower()
red = Color.RED""",
        "red is Color.RED and Color(2) is Color.GREEN and Color.CRIMSON is red"
        " and red.pretty() == 'red'"
        " and list(Color.__members__) == ['RED', 'GREEN', 'CRIMSON']",
    ),
    Kind(
        "an enum whose members have attributes",
        """\
import enum
class Planet(enum.Enum):
    MERCURY = (3.3e23, 2.4e6)
    EARTH = (5.9e24, 6.3e6)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius
    @property
    def density(self):
        return self.mass / self.radius ** 3""",
        "Planet.EARTH.mass == 5.9e24 and Planet.EARTH.density > 1",
    ),
    Kind(
        "an enum with `__new__` and a base type",
        """\
import enum
class Status(int, enum.Enum):
    def __new__(cls, value, phrase):
        self = int.__new__(cls, value)
        self._value_, self.phrase = value, phrase
        return self
    OK = (200, 'fine')
    GONE = (410, 'lost')
class Level(str, enum.Enum):
    LOW = 'low'""",
        "Status(410).phrase == 'lost' and Status.OK + 1 == 201 and Level.LOW == 'low'",
    ),
    Kind(
        "an enum whose base's `__new__` makes its members",
        """\
import enum
class Labeled(enum.Enum):
    def __new__(cls, value, label):
        member = object.__new__(cls)
        member._value_, member.label = value, label
        return member
class Paint(Labeled):
    RED = 1, 'red'
    BLUE = 2, 'blue'
class Numbered(enum.Enum):
    def __new__(cls):
        member = object.__new__(cls)
        member._value_ = len(cls.__members__) + 1
        return member
class Step(Numbered):
    FIRST = ()
    SECOND = ()
    @classmethod
    def _missing_(cls, value):
        return cls.FIRST if value == 'first' else None
def name_it(step):
    class More(Labeled):
        MORE = 3, step.name
    return More.MORE.label""",
        "[paint.value for paint in Paint] == [1, 2] and Paint(2).label == 'blue'"
        " and value is Step.SECOND and Step('first').value == 1 and name_it(value) == 'SECOND'",
        argument="Step.SECOND",
    ),
    Kind(
        "an enum of a dataclass, of dates, of tuples",
        """\
import dataclasses, datetime, enum
@dataclasses.dataclass(frozen=True)
class Creature:
    size: str
    legs: int = 4
class Beast(Creature, enum.Enum):
    BEETLE = 'small', 6
    DOG = 'medium'
class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 1
class Corner(tuple, enum.Enum):
    ORIGIN = 0, 0""",
        "value is Beast.DOG and (value.size, value.legs) == ('medium', 4)"
        " and Beast.BEETLE.legs == 6 and Day.FIRST.year == 2020 and Corner((0, 0)) == (0, 0)",
        argument="Beast.DOG",
    ),
    Kind(
        "boundaries of flags, `nonmember`",
        """\
import enum
class Kept(enum.Flag, boundary=enum.KEEP):
    A = 1
    MASK = 12
class Fitted(enum.IntFlag, boundary=enum.CONFORM):
    A = 1
    notes = enum.nonmember([1])""",
        "Kept(16).value == 16 and Kept.MASK.value == 12"
        " and Fitted(9) == Fitted.A and Fitted.notes == [1] and len(Fitted) == 1",
        python=(3, 11),
    ),
    Kind(
        "an enum of functions",
        """\
import enum
def double(x):
    return 2 * x
class Op(enum.Enum):
    DOUBLE = enum.member(double)
    HALF = enum.member(lambda x: x / 2)""",
        "Op.DOUBLE.value(3) == 6 and Op.HALF.value(3) == 1.5 and len(Op) == 2",
        python=(3, 11),
    ),
    Kind(
        "flags, combined ones too",
        """\
import enum
class Access(enum.Flag):
    R = enum.auto()
    W = enum.auto()
    RW = R | W
    NONE = 0
both = Access.R | Access.W""",
        "both is Access.RW and Access.R in both and Access.NONE.value == 0",
    ),
    Kind(
        "`auto()` with `_generate_next_value_`",
        """\
import enum
class Named(enum.Enum):
    def _generate_next_value_(name, *_):
        return name.lower()
    ONE = enum.auto()
    TWO = enum.auto()""",
        "Named.TWO.value == 'two' and Named('one') is Named.ONE",
    ),
    Kind(
        "`NewType`, `TypeVar`, `ParamSpec`",
        """\
import typing
UserId = typing.NewType('UserId', int)
V = typing.TypeVar('V', int, str)
P = typing.ParamSpec('P')""",
        "UserId(3) == 3 and UserId.__supertype__ is int"
        " and V.__constraints__ == (int, str) and P.__name__ == 'P'",
    ),
    Kind(
        "a `type` statement",
        "type Ids = list[int]",
        "Ids.__value__ == list[int]",
        python=(3, 12),
    ),
    Kind(
        "a `type` statement with parameters, one that names itself",
        """\
import typing
type Pair[A] = tuple[A, A]
type Json = dict[str, Json] | list[Json] | str
class Both[T: (int, str)]:
    pass""",
        "Pair.__value__ == tuple[Pair.__type_params__ * 2] and str(Pair[int]) == 'Pair[int]'"
        " and typing.get_args(Json.__value__)[1].__args__[0] is Json"
        " and Json.__module__ == '__main__'"
        " and Both.__type_params__[0].__constraints__ == (int, str)",
        python=(3, 12),
    ),
    Kind(
        "a `type` statement of what is not there yet",
        """\
type Lazy = NotThereYet
def evaluate():
    try:
        return Lazy.__value__
    except NameError:
        return 'not there'""",
        "evaluate() == 'not there' and Lazy.__name__ == 'Lazy'",
        python=(3, 12),
    ),
    Kind(
        "defaults of type parameters",
        """\
import typing
class Box[T = int]:
    pass
D = typing.TypeVar('D', default=float)
Q = typing.ParamSpec('Q', default=[int, str])""",
        "Box.__type_params__[0].__default__ is int and D.__default__ is float"
        " and Q.__default__ == [int, str] and D.__module__ == '__main__'",
        python=(3, 13),
    ),
    Kind(
        "containers of the standard library",
        """\
import collections, decimal, fractions, datetime, uuid, pathlib, re, array, types
things = [collections.OrderedDict(a=1), collections.defaultdict(list, b=[2]),
    collections.deque([3], 5), collections.Counter('aab'), collections.ChainMap({'c': 4}),
    decimal.Decimal('1.5'), fractions.Fraction(1, 3), datetime.timedelta(1), uuid.UUID(int=5),
    pathlib.Path('/tmp'), re.compile('a+'), array.array('d', [1.0]), types.SimpleNamespace(d=6),
    range(3), slice(1, 2), 1j]
named = lambda xs: [type(x).__name__ for x in xs]""",
        "value == things and named(value) == named(things) and value[1].default_factory is list",
        argument="things",
    ),
    Kind(
        "a defaultdict of a lambda",
        """\
import collections
nested = collections.defaultdict(lambda: collections.defaultdict(int))
nested['a']['b'] += 1""",
        "nested['a']['b'] == 1 and nested['x']['y'] == 0",
    ),
    Kind(
        "a mapping proxy, views of a dict",
        """\
import types
viewed = {'a': 1}
proxy = types.MappingProxyType(viewed)
keys = viewed.keys()""",
        "proxy['a'] == 1 and 'a' in keys",
    ),
    Kind(
        "a random generator with its state",
        """\
import random
rng = random.Random(5)
rng.random()
the_next = random.Random()
the_next.setstate(rng.getstate())
expected = the_next.random()""",
        "rng.random() == expected",
    ),
    Kind(
        "a module made by hand",
        """\
import types
made = types.ModuleType('made')
exec('x = 1\\ndef f():\\n    return x', vars(made))""",
        "made.x == 1 and made.f() == 1",
    ),
    Kind(
        "a memoryview",
        "view = memoryview(b'abc')",
        "type(value) is memoryview and bytes(value) == b'abc'",
        argument="view",
        arrives="**bytes**: the memory it shows is the caller's",
        differs=True,
    ),
    Kind(
        "an iterator over a list",
        """\
it = iter([1, 2, 3])
next(it)""",
        "list(__import__('copy').copy(value)) == [2, 3]",
        argument="it",
    ),
]

THREADS = [
    Kind(
        "locks, held or not",
        """\
import threading
lock, rlock = threading.Lock(), threading.RLock()
def try_them():
    free = lock.acquire(timeout=5), rlock.acquire(timeout=5)
    lock.release()
    rlock.release()
    return all(free)""",
        "try_them()",
        arrives="new: whoever holds one in the caller is not in the rank",
    ),
    Kind(
        "a lock of an instance, held while the call is packed",
        """\
import os, threading
class Safe:
    def __init__(self):
        self.lock = threading.Lock()
        self.held_by = os.getpid()
safe = Safe()
safe.lock.acquire()""",
        "safe.lock.locked() == (os.getpid() == safe.held_by)",
        arrives="new",
    ),
    Kind(
        "a condition",
        """\
import threading
condition = threading.Condition()
def notify():
    with condition:
        condition.notify_all()
        return True""",
        "notify()",
        arrives="new, nobody waits for it",
    ),
    Kind(
        "an event",
        """\
import threading
event, quiet = threading.Event(), threading.Event()
event.set()""",
        "event.wait(5) and not quiet.is_set()",
        arrives="set, if it is set; nobody waits for it",
    ),
    Kind(
        "semaphores and barriers",
        """\
import threading
semaphore = threading.Semaphore(2)
bounded = threading.BoundedSemaphore(1)
barrier = threading.Barrier(1)
def use():
    with semaphore, bounded:
        return barrier.wait(5) == 0""",
        "use()",
        arrives="a semaphore with its count, a bounded one and a barrier new",
    ),
    Kind(
        "a `queue.Queue` with items",
        """\
import queue
q = queue.Queue(5)
q.put('a')
q.put('b')""",
        "(value.qsize(), value.maxsize, value.queue[0]) == (2, 5, 'a')",
        argument="q",
    ),
    Kind(
        "`threading.local`",
        """\
import threading
local = threading.local()
local.x = [1]
class State(threading.local):
    y = 2
state = State()
state.z = 3""",
        "(local.x, state.y, state.z) == ([1], 2, 3)",
        arrives="with the values of the calling thread",
    ),
    Kind(
        "a context variable",
        """\
import contextvars
variable = contextvars.ContextVar('variable')
variable.set(5)""",
        "variable.get() == 5",
        arrives="with its value",
    ),
    Kind(
        "a logger",
        """\
import logging
logger = logging.getLogger('notebook')""",
        "logger is logging.getLogger('notebook')",
        arrives="the rank's own logger of that name, without handlers set in the caller",
    ),
    Kind(
        "the standard streams",
        """\
import sys
out = sys.stdout""",
        "out is sys.stdout",
        arrives="the rank's own",
    ),
    Kind(
        "`os.environ` by another name",
        "from os import environ",
        "environ is __import__('os').environ",
        arrives="the rank's own",
    ),
    Kind(
        "functions of `random`, by their names",
        """\
import random as module
from random import randint, random""",
        "random.__self__ is module._inst and 0 <= randint(0, 1) <= 1",
        arrives="the rank's own, so that each rank draws other numbers",
    ),
    Kind(
        "the module `__main__`",
        """\
import __main__
only_by_attribute = 1""",
        "hasattr(__main__, 'only_by_attribute')",
        arrives="**the rank's own**, with the names that something reaches, or that `need` names",
        differs=True,
    ),
    Kind(
        "a file in memory",
        """\
import io
buffer = io.StringIO('text')""",
        "buffer.getvalue() == 'text'",
    ),
    Kind(
        "a bar of tqdm's",
        """\
import io, os, tqdm
bar = tqdm.tqdm(range(3), file=io.StringIO())
def run():
    return bar.disable, sum(bar), bar.total""",
        "run() == (os.getpid() != value, 3, 3)",
        argument="os.getpid()",
        arrives="switched off: the caller shows it",
        needs="tqdm",
    ),
    Kind(
        "an executor or session of ours that is dragged along",
        """\
import os
class Trainer:
    def __init__(self):
        self.executor = executor
    def train(self):
        return 'trained'
    def nested(self):
        try:
            return self.executor.submit and 'here'
        except TypeError as error:
            return str(error)
trainer = Trainer()""",
        "trainer.train() == 'trained' and ("
        "trainer.nested() == 'here' if os.environ['RANK'] == '0' and os.getpid() == value"
        " else 'make one in the rank' in trainer.nested())",
        argument="os.getpid()",
        arrives="raises when it is used: make one in the rank, with `caller_rank=None`",
    ),
]

WEAK = [
    Kind(
        "a weak reference, to what travels too",
        """\
import weakref
class Target: ...
target = Target()
reference = weakref.ref(target)""",
        "reference() is target",
    ),
    Kind(
        "a weak reference to what does not travel",
        """\
import weakref
class Target: ...
left_behind = Target()
lost = weakref.ref(left_behind)""",
        "lost() is not None",
        arrives="**dead**: nothing holds its target in the rank",
        differs=True,
    ),
    Kind(
        "a weak method, a weak proxy",
        """\
import weakref
class Target:
    def hi(self):
        return 'hi'
target = Target()
method, proxy = weakref.WeakMethod(target.hi), weakref.proxy(target)""",
        "(method()(), proxy.hi(), target.hi()) == ('hi', 'hi', 'hi')",
    ),
    Kind(
        "`WeakKeyDictionary`, `WeakValueDictionary`, `WeakSet`",
        """\
import weakref
class Key: ...
key = Key()
by_key = weakref.WeakKeyDictionary({key: 1})
by_name = weakref.WeakValueDictionary(k=key)
alive = weakref.WeakSet([key])""",
        "by_key[key] == 1 and by_name['k'] is key and key in alive",
    ),
    Kind(
        "a tree whose children know their parent weakly",
        """\
import weakref
class Tree:
    def __init__(self, parent=None):
        self.children = []
        self.parent = parent and weakref.ref(parent)
        if parent:
            parent.children.append(self)
root = Tree()
leaf = Tree(root)""",
        "root.children[0].parent() is root",
    ),
]

REACH = [
    Kind(
        "variables that the function does not reach",
        """\
import socket
unused = socket.socketpair()
unused_files = [open('/dev/null')]
def used():
    return 1""",
        "used() == 1",
        arrives="nothing of them travels",
    ),
    Kind(
        "an attribute with the name of a variable",
        """\
import types
secret = (x for x in ())
holder = types.SimpleNamespace(secret=1)
def f():
    return holder.secret""",
        "f() == 1",
    ),
    Kind(
        "a string annotation that says something in words",
        """\
data = (x for x in ())
def f(x: 'data', y: 'see the manual' = 0):
    return x""",
        "f(1) == 1",
        arrives="as it is; variables with data that it names do not travel",
    ),
    Kind(
        "a class that counts its instances",
        """\
class Counting:
    made = 0
    def __init__(self):
        Counting.made += 1
for _ in range(3):
    Counting()""",
        "Counting.made == 3",
    ),
    Kind(
        "a list of 1000 lists in each other",
        """\
deep_list = []
for _ in range(1000):
    deep_list = [deep_list]
def depth(x):
    n = 0
    while x:
        x = x[0]
        n += 1
    return n""",
        "depth(value) == 1000",
        argument="deep_list",
    ),
    Kind(
        "a linked list of 500 instances",
        """\
class Link:
    def __init__(self, rest):
        self.rest = rest
links = None
for _ in range(500):
    links = Link(links)
def length(x):
    n = 0
    while x is not None:
        x, n = x.rest, n + 1
    return n""",
        "length(links) == 500",
    ),
]

ARRAYS = [
    Kind(
        "functions of `numpy.random`, by their names",
        """\
import numpy as np
from numpy.random import rand""",
        "rand.__self__ is np.random.mtrand._rand and rand(2).shape == (2,)",
        needs="numpy",
        arrives="the rank's own, so that each rank draws other numbers",
    ),
    Kind(
        "a numpy array, and views of it",
        """\
import numpy as np
array = np.arange(6.0).reshape(2, 3)
half = array[1]""",
        "array.sum() == 15 and half.tolist() == [3, 4, 5]",
        needs="numpy",
    ),
    Kind(
        "two views of one numpy array",
        """\
import numpy as np
whole = np.zeros(4)
part = whole[:2]""",
        "np.shares_memory(whole, part)",
        arrives="**two arrays**: numpy pickles each view by itself",
        differs=True,
        needs="numpy",
    ),
    Kind(
        "an `nn.Module` with tied weights",
        """\
import torch
class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Linear(3, 3)
        self.decode = torch.nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
    def forward(self, x):
        return self.decode(self.encode(x))
net = Tied()""",
        "net.encode.weight is net.decode.weight and net(torch.ones(1, 3)).shape == (1, 3)",
        needs="torch",
    ),
    Kind(
        "a module with parametrizations, as `weight_norm` and `spectral_norm` make it",
        """\
import torch
class Symmetric(torch.nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T
normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
symmetric = torch.nn.Linear(3, 3)
torch.nn.utils.parametrize.register_parametrization(symmetric, 'weight', Symmetric())
mean = normed.weight.sum().item()""",
        "normed.weight.sum().item() == mean and torch.equal(symmetric.weight, symmetric.weight.T)",
        needs="torch",
    ),
    Kind(
        "a scripted or traced module, by itself or in another",
        """\
import torch, warnings
with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    traced = torch.jit.trace(torch.nn.Linear(3, 3), torch.ones(3))
holder = torch.nn.Sequential(traced)
expected = holder(torch.ones(3)).tolist()""",
        "holder(torch.ones(3)).tolist() == expected and len(list(holder.parameters())) == 2",
        needs="torch",
    ),
    Kind(
        "a parameter with its gradient and its hooks",
        """\
import torch
weights = torch.nn.Parameter(torch.ones(3))
weights.register_hook(lambda gradient: gradient.clamp(max=2.0))
(weights * 7).sum().backward()""",
        "(weights.sum().backward(), weights.grad.tolist())[1] == [3.0] * 3",
        needs="torch",
    ),
    Kind(
        "tensors that share memory",
        """\
import torch
whole = torch.zeros(4)
part = whole[1:3]""",
        "part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()",
        needs="torch",
    ),
    Kind(
        "a model, its optimizer and learning rate schedule",
        """\
import torch
net = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** step)
def train():
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    return optimizer.param_groups[0]['params'][0] is net.weight""",
        "train() and schedule.optimizer is optimizer",
        needs="torch",
    ),
    Kind(
        "an `autograd.Function`",
        """\
import torch
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x
    @staticmethod
    def backward(ctx, grad):
        return 3 * grad
def gradient():
    x = torch.ones(1, requires_grad=True)
    Double.apply(x).sum().backward()
    return x.grad.item()""",
        "gradient() == 3",
        needs="torch",
    ),
    Kind(
        "a `Dataset` for a `DataLoader` with workers",
        """\
import torch
class Sample:
    def __init__(self, x):
        self.x = x
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return Sample(index * index)
def load():
    loader = torch.utils.data.DataLoader(Squares(), collate_fn=list, batch_size=2, num_workers=1)
    return [sample.x for batch in loader for sample in batch]""",
        "load() == [0, 1, 4, 9]",
        needs="torch",
    ),
]

REFUSED = [
    Kind(
        "a `ctypes` structure",
        """\
import ctypes
class Header(ctypes.Structure):
    _fields_ = [('x', ctypes.c_int)]""",
        "Header(1).x == 1",
        arrives="define it in a module",
        refused="Header.x, used by <lambda>() (a CField)",
    ),
    Kind(
        "`functools.cmp_to_key`",
        """\
import functools
by_size = functools.cmp_to_key(lambda a, b: a - b)""",
        "sorted([2, 1], key=by_size)",
        arrives="make it inside the function",
        refused="the variable 'by_size', used by <lambda>() (a KeyWrapper)|make it inside",
    ),
    Kind(
        "a generator",
        "running = (x for x in range(3))",
        "list(running)",
        arrives="pass a list, or the function that makes it",
        refused="the variable 'running', used by <lambda>() (a generator)|pass list(...) of it",
    ),
    Kind(
        "a coroutine that is not awaited",
        """\
async def wait(): ...
waiting = wait()
waiting.close()""",
        "value",
        argument="waiting",
        arrives="pass the coroutine function",
        refused="argument 0 of <lambda>() (a coroutine)|pass the function that makes it",
    ),
    Kind(
        "a socket",
        """\
import socket, types
holder = types.SimpleNamespace(cfg={'inner': [0, socket.socket()]})
def helper():
    return holder
def work():
    return helper()""",
        "work()",
        arrives="connect inside the function",
        refused="holder.cfg['inner'][1], used by helper() (a socket)|connect inside the function",
    ),
    Kind(
        "an open file",
        """\
log = open('/dev/null')
def write():
    log.write('x')""",
        "write()",
        arrives="pass its path",
        refused="the variable 'log', used by write() (a TextIOWrapper)|open it inside the function",
    ),
    Kind(
        "a running thread, a pool of threads",
        """\
import threading
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
done.set()""",
        "value",
        argument="[thread]",
        arrives="start it inside the function",
        refused="argument 0 of <lambda>() at [0] (a Thread)|start it inside the function",
    ),
    Kind(
        "a process",
        """\
import subprocess
process = subprocess.Popen(['true'])
process.wait()""",
        "process",
        arrives="start it inside the function",
        refused="the variable 'process', used by <lambda>() (a Popen)|start it inside the function",
    ),
    Kind(
        "a future",
        """\
import concurrent.futures
future = concurrent.futures.Future()
future.set_result(1)""",
        "future.result()",
        arrives="pass its result",
        refused="the variable 'future', used by <lambda>() (a Future)|pass its result",
    ),
    Kind(
        "a database connection",
        """\
import sqlite3
class Store:
    def __init__(self):
        self.db = sqlite3.connect(':memory:')
    def get(self):
        return self.db
store = Store()""",
        "store.get()",
        arrives="connect inside the function",
        refused="store.db, used by <lambda>() (a Connection)|make it inside the function",
    ),
    Kind(
        "a traceback",
        """\
try:
    1 / 0
except ZeroDivisionError as error:
    trace = error.__traceback__""",
        "trace",
        arrives="pass `traceback.format_exc()`",
        refused="the variable 'trace', used by <lambda>() (a traceback)|make it inside",
    ),
    Kind(
        "`get_ipython()` and magics",
        """\
def shell():
    return get_ipython()""",
        "shell()",
        arrives="use them outside of what ranks run",
        refused="|use get_ipython() and magics (%, !) outside",
        in_kernel=True,
    ),
]

GROUPS = {
    "Functions": FUNCTIONS,
    "Classes": CLASSES,
    "Values": VALUES,
    "Threads and streams": THREADS,
    "Weak references": WEAK,
    "Large and small": REACH,
    "Arrays and tensors": ARRAYS,
    "Refused": REFUSED,
}
