"""Pickling once more, in Python: for what is nested too deeply, and to find what was refused.

Much slower than the C pickler, and only used when that has failed.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rankexec._gang.names import Going
from rankexec._gang.picklers import (
    CallPickler,
    DillPickler,
    Keep,
    Refer,
    Referring,
    with_references,
)

__all__ = ("Dumper", "Frame", "Replay", "find_refused", "second_attempt")

Dumper = Callable[[io.BytesIO, Keep, Any], Any]
"""Pickles a value, and returns the pickler that has done it."""

# The standard library's pickler in Python takes no C stack from 3.11 on, and before that little;
# but user code that recurses without end may, up to 1 KiB a frame. 3.12 limits that by itself.
DEEPEST = 20_000 if sys.version_info >= (3, 12) else 6_000


def second_attempt(going: Going | None, error: Exception, refer: Refer | None = None) -> Dumper:
    """Return what may pickle a call after the C pickler has failed with `error`."""
    deep = isinstance(error.__cause__, RecursionError)
    return partial(_dump_deep if deep else _dump_with_dill, going, refer)


def _dump_with_dill(
    going: Going | None, refer: Refer | None, file: io.BytesIO, keep: Keep, value: Any
) -> Any:
    pickler = with_references(DillPickler, file, keep, going, refer)
    pickler.dump(value)
    return pickler


def _dump_deep(
    going: Going | None, refer: Refer | None, file: io.BytesIO, keep: Keep, value: Any
) -> Any:
    """Pickle with a higher limit: the C pickler has a fixed one (3.12) or fills the C stack."""
    reducing = with_references(CallPickler, io.BytesIO(), keep, going, refer)
    with _deep():
        replay = Replay(file, reducing, keep)
        replay.dump(value)
    return replay


_deepening = threading.RLock()


@contextmanager
def _deep() -> Iterator[None]:
    with _deepening:  # the limit is the process's, and each thread puts back what it has found
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, DEEPEST))
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)


# Private, but the only way; its stubs have no more than its public methods.
_Standard: Any = pickle._Pickler


class Replay(_Standard):  # type: ignore[misc]  # see above
    """The standard library's pickler in Python, which reduces as another pickler of ours does."""

    def __init__(self, file: io.BytesIO, reducing: CallPickler, keep: Keep) -> None:
        super().__init__(file, 5, buffer_callback=keep)
        self.reducer_override = reducing.reducer_override
        self.dispatch_table = reducing.dispatch_table
        if isinstance(reducing, Referring):
            self.persistent_id = reducing.persistent_id

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


def find_refused(value: Any, going: Going | None) -> tuple[list[Frame], Exception | None]:
    """Return the frames that lead to what cannot be pickled, and why; none if all of it can."""

    def keep(_: pickle.PickleBuffer) -> bool:
        return False  # no byte of a large array needs to be read

    replay = Replay(io.BytesIO(), DillPickler(io.BytesIO(), keep, going), keep)
    try:
        with _deep():
            replay.dump(value)
    except Exception as error:  # pickling runs the user's __reduce__, which may raise anything
        return _frames(error), error.with_traceback(None)
    return [], None


def _frames(error: Exception) -> list[Frame]:
    """Return what the pickler's own frames hold: where it was is nowhere else."""
    found: list[Frame] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is _Standard.save.__code__:
            found.append(Frame(frame.f_locals["obj"]))
        elif frame.f_code is _Standard.save_reduce.__code__ and found:
            found[-1].args, found[-1].state = frame.f_locals["args"], frame.f_locals["state"]
    return found
