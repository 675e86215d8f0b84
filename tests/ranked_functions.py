"""What ranks run in the tests: small functions of a module, so that they go by name."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


def rank() -> int:
    """Return this rank."""
    return int(os.environ["RANK"])


def variables(*names: str) -> dict[str, str | None]:
    """Return environment variables of this rank."""
    return {name: os.environ.get(name) for name in names}


def raise_on(which: int, error: BaseException) -> int:
    """Raise on one rank; the others sleep until they are ended."""
    if rank() == which:
        raise error
    time.sleep(600)
    return rank()


def returning(value: Any) -> Any:
    """Return what came in."""
    return value


def announce(directory: str, *, then_sleep: float = 0) -> int:
    """Write this process's pid into a file named after its rank; then sleep."""
    path = os.path.join(directory, os.environ["RANK"])
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    time.sleep(then_sleep)
    return os.getpid()


def wait_for(path: str) -> float:
    """Wait until a file is there, a minute at most; return when it was."""
    limit = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > limit:
            raise TimeoutError(path)
        time.sleep(0.005)
    return time.monotonic()


def meet(directory: str, name: str, *others: str) -> dict[str, str | None]:
    """Leave a file and wait for those of others: only calls that run side by side come back."""
    with open(os.path.join(directory, name), "w", encoding="ascii"):
        pass
    for other in others:
        wait_for(os.path.join(directory, other))
    return variables("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")


def nested(caller_rank: int | None) -> Any:
    """Submit inside a rank; return what came of it, or of its refusal."""
    from rankexec import RankedExecutor

    try:
        with RankedExecutor(2, caller_rank=caller_rank, gather=True) as executor:
            return executor.submit(variables, "RANK", "WORLD_SIZE").result()
    except RuntimeError as error:
        return str(error)


def change_the_process() -> None:
    """Change what belongs to the whole process, and fail."""
    import signal
    import sys
    import types

    os.environ["RANKEXEC_TEST_NEW"] = "1"
    os.environ["PATH"] = "changed"
    del os.environ["RANK"]
    os.chdir("/")
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ValueError("changed everything")


def work_in_a_directory_and_remove_it() -> int:
    """Leave the process in a directory that is no more."""
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
    return 1


def remove_the_directory() -> int:
    """Remove the directory that the process is in, and go elsewhere."""
    directory = os.getcwd()
    os.chdir("..")
    os.rmdir(directory)
    return 1


class SubmitsInTheCaller:
    """A context whose caller side wants the calling thread for another gang."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...

    @contextmanager
    def caller_side(self, world_size: int, _caller_rank: int | None) -> Iterator[dict[str, str]]:
        """Run a gang before the gang."""
        from rankexec import RankedExecutor

        with RankedExecutor(world_size) as executor:
            executor.submit(rank).result()
        yield {}


def use_gpu_memory(size: int) -> None:
    """Make this process one whose torch has held so much of a GPU, as far as it can be asked."""
    _be_on_gpu(lambda: size)


def fail_on_gpu() -> None:
    """Raise, as every later call to the GPU does."""

    def fail() -> int:
        raise RuntimeError("CUDA error: device-side assert triggered")

    _be_on_gpu(fail)
    raise ValueError("the first error")


def _be_on_gpu(max_memory_reserved: Callable[[], int]) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_reserved=max_memory_reserved)
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)  # type: ignore[assignment]  # no GPU here
