"""What ranks do wrong in the tests of faults: functions, contexts and values, all of a module.

Everything that waits without end gives up after ten minutes, should the library fail to end it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import operator
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from rankexec import TorchDDPCtx

LONG = 600


def one_does(which: int, action: Callable[[], Any], others: Callable[[], Any] | None = None) -> Any:
    """Call `action` on one rank and `others` on the others; without it they hang."""
    if int(os.environ["RANK"]) == which:
        return action()
    return hang() if others is None else others()


def mark(directory: str) -> str:
    """Write down, in a file, that this process was here: see `helpers.Marks`."""
    # Under another name first: whoever sees the file may read it.
    name = f"{os.environ['RANK']}-{os.getpid()}"
    path = os.path.join(directory, name)
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {psutil.Process().create_time()}")
    os.rename(f"{path}.new", path)
    return name


def marked(directory: str, action: Callable[[], Any] = int) -> Any:
    """Leave a mark, then do something."""
    mark(directory)
    return action()


def mark_with(directory: str, *_: Any) -> str:
    """Leave a mark, whatever else was passed."""
    return mark(directory)


def after_mark_of(which: int, directory: str, action: Callable[[], Any]) -> Any:
    """Do something once another rank has left its mark."""
    limit = time.monotonic() + LONG
    while not any(name.startswith(f"{which}-") for name in os.listdir(directory)):
        if time.monotonic() > limit:
            raise TimeoutError
        time.sleep(0.001)
    return action()


def wait_for_file(directory: str, name: str) -> None:
    """Leave a mark and wait until the test makes a file."""
    mark(directory)
    limit = time.monotonic() + LONG
    while not os.path.exists(os.path.join(directory, name)) and time.monotonic() < limit:
        time.sleep(0.01)


# --- waiting without end ---


def hang() -> None:
    """Sleep."""
    time.sleep(LONG)


def spin() -> None:
    """Run a busy loop in Python."""
    limit = time.monotonic() + LONG
    while time.monotonic() < limit:
        pass


def wait_for_lock() -> None:
    """Wait for a lock that nobody releases."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=LONG)


def wait_for_pipe() -> None:
    """Read from a pipe into which nobody writes."""
    reader, writer = os.pipe()
    try:
        os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)


def swallow_one() -> None:
    """Swallow the first exception, whatever it is, and sleep on."""
    with contextlib.suppress(BaseException):
        time.sleep(LONG)
    time.sleep(LONG)


TEST = threading.Lock()
"""The test holds it, in the caller; every child has one of its own."""


def wait_for_test() -> None:
    """Wait until the test releases its lock."""
    with TEST:
        pass


def c_call() -> None:
    """Be in C code, the GIL released."""
    ctypes.CDLL(None).sleep(LONG)


def c_call_with_gil() -> None:
    """Be in C code that keeps the GIL: no other thread of this process runs."""
    ctypes.PyDLL(None).sleep(LONG)


def stop() -> None:
    """Stop this process, as Ctrl-Z does: it runs no handler, and is alive."""
    os.kill(os.getpid(), signal.SIGSTOP)


# --- dying ---


def die_of(number: int) -> None:
    """End by a signal, with some last words."""
    for line in range(100):
        print("line", line, file=sys.stderr)
    os.write(2, b"last words")
    os.kill(os.getpid(), number)
    hang()


def crash() -> None:
    """Read from address 0."""
    print("last words", file=sys.stderr)
    ctypes.string_at(0)


def exit_at_once(code: int) -> None:
    """Leave without clean-up of any kind."""
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


def die_with_memory(size: int) -> None:
    """Fill memory, then be killed."""
    filled = b"x" * size
    os.kill(os.getpid(), signal.SIGKILL)
    del filled


# --- raising, and values that do not travel ---


def throw(error: BaseException) -> None:
    """Raise an exception that the caller has made."""
    raise error


class Unpicklable(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.running = (x for x in ())


def throw_unpicklable() -> None:
    """Raise an exception that cannot be pickled."""
    raise Unpicklable("it holds a generator")


class Refusing(Exception):
    """Lets nobody set an attribute."""

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"{name} is not to be set")


@dataclass(frozen=True)
class Frozen(Exception):
    """The same, as people write it; it cannot be unpickled either."""

    code: int = 1


class Empty(Exception):
    """Counts as false."""

    def __len__(self) -> int:
        return 0


def throw_new(kind: type[BaseException]) -> None:
    """Raise an exception that is made here."""
    raise kind


class Insists:
    """A context that wants to be told of the exception."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, *exc_info: object) -> None:
        if kind is None:
            os._exit(9)


class OtherArguments(Exception):
    """Its __init__ takes other arguments than it stores in `args`."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


def throw_other_arguments() -> None:
    """Raise an exception that pickle alone could not rebuild."""
    raise OtherArguments(5, reason="no luck")


def throw_local_class() -> None:
    """Raise an exception whose class is made here."""

    class LocalError(Exception):
        pass

    raise LocalError("only here")


def throw_class_of_local_module() -> None:
    """Raise an exception whose class is in a module that only this process has."""
    module = sys.modules["only_here"] = types.ModuleType("only_here")
    module.LocalError = type("LocalError", (Exception,), {"__module__": "only_here"})
    raise module.LocalError("only here")


class RaisesWhenUnpickled:
    """Pickles well; loading it divides by zero."""

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.truediv, (1, 0)


class WhenUnpickled:
    """Does something when it is unpickled on one rank."""

    def __init__(self, which: int, action: Callable[[], Any]) -> None:
        self.which = which
        self.action = action

    def __reduce__(self) -> tuple[Any, ...]:
        return one_does, (self.which, self.action, int)


class CannotBePickled:
    """Refuses."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("it will not be pickled")


def make(kind: type) -> Any:
    """Return a new object."""
    return kind()


# --- contexts ---


class Faulty:
    """A context that raises, on one rank, when it is entered, or left, or both."""

    def __init__(self, which: int, *where: str) -> None:
        self.which = which
        self.where = where

    def __enter__(self) -> None:
        self._perhaps("entering")

    def __exit__(self, *exc_info: object) -> None:
        self._perhaps("leaving")

    def _perhaps(self, where: str) -> None:
        if where in self.where and int(os.environ["RANK"]) == self.which:
            raise ValueError(f"{where} on rank {self.which}")


class DiesLeaving(Faulty):
    """A context in which one rank's process ends when it leaves."""

    def __init__(self, which: int, code: int) -> None:
        super().__init__(which)
        self.code = code

    def __exit__(self, *exc_info: object) -> None:
        if int(os.environ["RANK"]) == self.which:
            os._exit(self.code)


class MarksLeaving:
    """A context that marks when it is left: its rank has reported by then."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        mark(self.directory)


class HangsEntering:
    """A context that marks and hangs."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        marked(self.directory, hang)

    def __exit__(self, *exc_info: object) -> None:
        pass


class HangsLeaving:
    """A context that marks, and on one rank hangs, when it is left."""

    def __init__(self, which: int, directory: str) -> None:
        self.which = which
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        mark(self.directory)
        if int(os.environ["RANK"]) == self.which:
            hang()


class NeverJoins(TorchDDPCtx):
    """One rank hangs before it joins the group; all leave a mark."""

    def __init__(self, which: int, directory: str) -> None:
        super().__init__()
        self.which = which
        self.directory = directory

    def __enter__(self) -> TorchDDPCtx:
        import torch.distributed  # noqa: F401  # it takes seconds; then the mark says "waits"

        mark(self.directory)
        if int(os.environ["RANK"]) == self.which:
            hang()
        return super().__enter__()


class StopsInRendezvous(TorchDDPCtx):
    """Rank 1 stops when its peer can find it, but before they have connected; then rank 0 joins."""

    def __init__(self, path: str) -> None:
        super().__init__(use_gpu=False)
        self.path = path

    def __enter__(self) -> TorchDDPCtx:
        import torch.distributed  # noqa: F401  # to have it imported is what counts

        if os.environ["RANK"] == "1":
            store = self._store(1, 2, None)
            stop = partial(self._stop_when_found, store, store.num_keys())
            threading.Thread(target=stop, daemon=True).start()
        else:
            while not os.path.exists(self.path):
                time.sleep(0.01)
            with open(self.path) as file:
                other = psutil.Process(int(file.read()))
            while other.status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
        return super().__enter__()

    def _stop_when_found(self, store: Any, before: int) -> None:
        while store.num_keys() == before:
            time.sleep(0.001)
        time.sleep(0.05)  # the first key may be torch's own
        with open(self.path + "~", "w") as file:
            file.write(str(os.getpid()))
        os.rename(self.path + "~", self.path)
        os.kill(os.getpid(), signal.SIGSTOP)


class HangsWhenJoined:
    """A group; one rank does not come to the end of entering, while a file is there."""

    def __init__(self, which: int, path: str) -> None:
        self.which = which
        self.path = path

    def __enter__(self) -> None:
        join_by_itself()
        if os.path.exists(self.path) and int(os.environ["RANK"]) == self.which:
            hang()

    def __exit__(self, *_exc_info: object) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


class Aborts:
    """Frees the caller's rank from `wait_for_test` when it is asked to."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def caller_abort(self) -> None:
        """Release the lock; break afterwards, perhaps."""
        TEST.release()
        if self.fails:
            raise OSError("cannot abort")


def leave_shared_memory(mark: str) -> None:
    """Be killed, with a process below, where torch has made shared memory that has a name yet."""
    pid = os.fork()
    with open(f"/dev/shm/torch_{os.getpid()}_{mark}", "w", encoding="ascii"):
        pass
    if pid == 0:
        hang()
    child = f"/dev/shm/torch_{pid}_{mark}"
    while not os.path.exists(child):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


# --- torch ---


def all_reduce() -> float:
    """Sum 1 over the ranks; with a rank missing, it waits."""
    import torch
    import torch.distributed as dist

    one = torch.ones(1)
    dist.all_reduce(one)
    return one.item()


def all_reduce_or_none() -> float | None:
    """Sum 1 over the ranks; None if that fails."""
    try:
        return all_reduce()
    except RuntimeError:
        return None


def all_reduce_for_ever() -> None:
    """Be in one collective after the other."""
    limit = time.monotonic() + LONG
    while time.monotonic() < limit:
        all_reduce()


class _Items:
    """A data set whose workers leave marks."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        if index < 4:
            mark(self.directory)
        return index


def with_data_loader(directory: str, action: Callable[[], Any]) -> Any:
    """Do something while two DataLoader workers live."""
    from torch.utils.data import DataLoader

    loader = DataLoader(_Items(directory), num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches), next(batches)
    _kept.append(batches)  # so that they outlive the function
    return action()


_kept: list[Any] = []


# --- processes that a rank leaves behind ---


def leave_popen(directory: str) -> None:
    """Start a program and forget it."""
    _kept.append(_start(directory))


def leave_session(directory: str) -> None:
    """Start a program in a session of its own, which ignores what a terminal would send."""
    _kept.append(_start(directory, start_new_session=True))


def leave_orphan(directory: str) -> None:
    """Fork twice, so that the grandchild has lost its parent."""
    if pid := os.fork():
        os.waitpid(pid, 0)
    elif os.fork():
        os._exit(0)
    else:
        os.setsid()
        _mark_and_stay(directory)


def leave_daemon(directory: str) -> None:
    """Leave a process that ignores every signal that can be ignored."""
    if not os.fork():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _mark_and_stay(directory)


def leave_runaway(directory: str) -> None:
    """Leave a process that replaces itself by a fork again and again; they share a lock."""
    if os.fork():
        return
    lock = open(os.path.join(directory, "lock"), "w")  # noqa: SIM115  # held by those forked
    fcntl.flock(lock, fcntl.LOCK_EX)
    mark(directory)
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not os.fork():
        time.sleep(0.01)
    os._exit(0)


def _mark_and_stay(directory: str) -> None:
    mark(directory)
    hang()
    os._exit(0)


def start_sleeper() -> subprocess.Popen[bytes]:
    """Return a program that runs."""
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"])


def _start(directory: str, **options: Any) -> subprocess.Popen[bytes]:
    program = "import sys; from faulty_ranks import marked, hang; marked(sys.argv[1], hang)"
    here = os.path.dirname(os.path.abspath(__file__))
    return subprocess.Popen(
        [sys.executable, "-c", program, directory],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])},
        **options,
    )


def leaving_behind(
    leave: Callable[[str], None], directory: str, action: Callable[[], Any] = int
) -> Any:
    """Leave a process behind, see it run, then do something."""
    leave(directory)
    return after_mark_of(int(os.environ["RANK"]), directory, action)


# --- for sessions ---


def append_to(values: list[Any], value: Any) -> None:
    """Append."""
    values.append(value)


def generator_on(which: int) -> Any:
    """Return what cannot be pickled, on one rank."""
    return (x for x in ()) if int(os.environ["RANK"]) == which else 0


class Counting:
    """A context that counts how often it was entered and left in this process."""

    entered = left = 0

    def __enter__(self) -> None:
        Counting.entered += 1

    def __exit__(self, *_: object) -> None:
        Counting.left += 1

    @staticmethod
    def read() -> str:
        """Return the numbers, in this process."""
        return f"entered {Counting.entered}" + (f", left {Counting.left}" if Counting.left else "")


class Failing:
    """A context that one rank cannot enter."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> None:
        if int(os.environ["RANK"]) == self.rank:
            raise ValueError("not today")

    def __exit__(self, *_: object) -> None: ...


class FailingToLeave(Failing):
    """A context that one rank cannot leave."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if int(os.environ["RANK"]) == self.rank:
            raise ValueError("stay")


class Saying:
    """A context that says when it is left."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        print("left\n", end="", flush=True)  # one write: another rank's line may come between


def open_session(caller_rank: int | None) -> int:
    """Run a call in a session, in a rank."""
    from rankexec import RankedExecutor

    with RankedExecutor(1, caller_rank=caller_rank) as executor, executor.session() as session:
        return session.submit(int).result()


def wait_for_key() -> None:
    """Wait, in C++, for what nobody puts into the group's store."""
    from torch.distributed import distributed_c10d

    distributed_c10d._get_default_store().get("never set")


def join_by_itself() -> None:
    """Make a group as scripts for a launcher do."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="env://")


def set_up_training() -> None:
    """Keep a model, its wrapper and its optimizer in this module."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    globals().update(model=model, optimizer=optimizer)


def train_a_little() -> float:
    """Take ten steps; return the last loss."""
    import torch

    model, optimizer = globals()["model"], globals()["optimizer"]
    inputs = torch.eye(3) + int(os.environ["RANK"])
    for _ in range(10):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def finish_training() -> list[float]:
    """Forget all of it; return the model's weights."""
    del globals()["optimizer"]
    weights: list[float] = globals().pop("model").module.weight.flatten().tolist()
    return weights
