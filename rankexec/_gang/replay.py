"""Pickling once more, in Python: for what is nested too deeply, and to find what was refused.

Much slower than the C pickler, and only used when that has failed.
"""

from __future__ import annotations

import io
import pickle
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from rankexec._gang.deep import deeply, in_caller_of_deeply
from rankexec._gang.deferred import Interruptible
from rankexec._gang.names import Going
from rankexec._gang.picklers import (
    CallPickler,
    DillPickler,
    DillResultPickler,
    Keep,
    Refer,
    Referring,
    ResultPickler,
    with_references,
)

__all__ = (
    "Dumper",
    "Frame",
    "Replay",
    "find_refused",
    "second_attempt",
    "second_attempt_of_result",
)

Dumper = Callable[[io.BytesIO, Keep, Any], Any]
"""Pickles a value, and returns the pickler that has done it."""

Make = Callable[[io.BytesIO, Keep], Any]


def second_attempt(going: Going | None, error: Exception, refer: Refer | None = None) -> Dumper:
    """Return what may pickle a call after the C pickler has failed with `error`."""
    kinds = (CallPickler, DillPickler)
    usual, with_dill = (partial(with_references, k, going=going, refer=refer) for k in kinds)
    return _again(usual, with_dill, error)


def second_attempt_of_result(of_caller: frozenset[str], error: Exception) -> Dumper:
    """Return what may pickle a result after the C pickler has failed with `error`."""
    kinds = (ResultPickler, DillResultPickler)
    usual, with_dill = (partial(kind, of_caller=of_caller) for kind in kinds)
    return _again(usual, with_dill, error)


def _again(usual: Make, with_dill: Make, error: Exception) -> Dumper:
    if isinstance(error.__cause__, RecursionError):
        return partial(_dump_deep, usual)
    return partial(_dump, with_dill)


def _dump(make: Make, file: io.BytesIO, keep: Keep, value: Any) -> Any:
    pickler = make(file, keep)
    _interruptibly(pickler.dump, value)
    return pickler


def _dump_deep(make: Make, file: io.BytesIO, keep: Keep, value: Any) -> Any:
    """Pickle with a higher limit: the C pickler has a fixed one (3.12) or fills the C stack."""

    def dump() -> Any:
        replay = Replay(file, make(io.BytesIO(), keep), keep)
        _interruptibly(replay.dump, value)
        return replay

    return deeply(dump)


# Private, but the only way; its stubs have no more than its public methods.
_Standard: Any = pickle._Pickler


class Replay(_Standard):  # type: ignore[misc]  # see above
    """The standard library's pickler in Python, which reduces as another pickler of ours does."""

    # As the C pickler has it: of these it asks nobody.
    _by_itself: ClassVar = {
        type(None): _Standard.save_none,
        bool: _Standard.save_bool,
        int: _Standard.save_long,
        float: _Standard.save_float,
        bytes: _Standard.save_bytes,
        bytearray: _Standard.save_bytearray,
        pickle.PickleBuffer: _Standard.save_picklebuffer,
        str: _Standard.save_str,
        tuple: _Standard.save_tuple,
        list: _Standard.save_list,
        dict: _Standard.save_dict,
        set: _Standard.save_set,
        frozenset: _Standard.save_frozenset,
    }
    # The standard table holds functions of dill's, once that is imported.
    dispatch: ClassVar = {
        **_by_itself,
        types.FunctionType: _Standard.save_global,
        type: _Standard.save_type,
    }

    def __init__(self, file: io.BytesIO, reducing: CallPickler, keep: Keep) -> None:
        super().__init__(file, 5, buffer_callback=keep)
        reduce = in_caller_of_deeply(reducing.reducer_override)

        def reducer_override(obj: Any) -> Any:
            return NotImplemented if type(obj) in Replay._by_itself else reduce(obj)

        self.reducer_override = reducer_override
        self.dispatch_table = reducing.dispatch_table
        if isinstance(reducing, Referring):
            self.persistent_id = reducing.persistent_id
        self.definitions = getattr(reducing, "definitions", [])

        def save_reduce(*args: Any, obj: Any) -> None:
            _Standard.save_reduce(self, *args, obj=obj)

        # The standard one is a method, and called with `*` that takes C stack (3.12).
        self.save_reduce = save_reduce


@dataclass
class Frame:
    """An object that is being pickled, and what it is taken apart into."""

    obj: Any
    args: Any = None
    state: Any = None


def find_refused(value: Any, going: Going | None) -> tuple[list[Frame], BaseException | None]:
    """Return the frames that lead to what cannot be pickled, and why; none if all of it can."""

    def keep(_: pickle.PickleBuffer) -> bool:
        return False  # no byte of a large array needs to be read

    replay = Replay(io.BytesIO(), DillPickler(io.BytesIO(), keep, going), keep)
    try:
        deeply(partial(_interruptibly, replay.dump, value))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # the user's __reduce__ may raise anything
        return _frames(error), error.with_traceback(None)
    return [], None


def _interruptibly(dump: Callable[[Any], None], value: Any) -> None:
    with Interruptible():
        dump(value)


def _frames(error: BaseException) -> list[Frame]:
    """Return what the pickler's own frames hold: where it was is nowhere else."""
    found: list[Frame] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is _Standard.save.__code__:
            found.append(Frame(frame.f_locals["obj"]))
        elif frame.f_code is _Standard.save_reduce.__code__ and found:
            found[-1].args, found[-1].state = frame.f_locals["args"], frame.f_locals["state"]
    return found
