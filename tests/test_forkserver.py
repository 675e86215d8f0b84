"""Ranks forked from the guardian are as fresh as spawned ones, and it is looked after."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import psutil
import pytest
from helpers import is_deputy, is_running, last_guardian, run_python, run_script, wait_until

from rankexec import (
    LauncherDied,
    LocalLauncher,
    PreloadError,
    RankDied,
    RankedExecutor,
    RankedFuture,
)
from rankexec._gang import line
from rankexec._gang.libc import collapse
from rankexec.launchers import _guarded
from rankexec.launchers._ends import (
    DESCRIPTORS,
    close_all,
    joined,
    offers_socket,
    receive_ends,
    send_ends,
)
from rankexec.launchers._guarded import GUARDIANS


def executor_with(launcher: LocalLauncher, world_size: int = 2, **options) -> RankedExecutor:
    """Return an executor of children only, whose results are gathered."""
    defaults = {"caller_rank": None, "gather": True, "timeout": 60}
    return RankedExecutor(world_size, launcher=launcher, **{**defaults, **options})


def guardian_pid() -> int:
    """Return the pid of the guardian that was used last."""
    return last_guardian()._process.pid


def draw() -> list[float]:
    """Return a number of every generator that a preloaded module may share."""
    numbers = [random.random()]
    if "numpy" in sys.modules:
        numbers.append(float(sys.modules["numpy"].random.random()))
    if "torch" in sys.modules:
        numbers.append(float(sys.modules["torch"].rand(1, dtype=sys.modules["torch"].double)))
    return numbers


def surroundings() -> tuple[object, ...]:
    """Return what a child takes over from its caller."""
    umask = os.umask(0)
    os.umask(umask)
    return os.getcwd(), os.environ.get("SOME_VARIABLE"), sys.path[0], umask, sys.argv


def test_no_two_ranks_draw_the_same():
    """Two gangs of a guardian that has loaded numpy and torch: all their numbers differ."""
    numpy = pytest.importorskip("numpy")
    with executor_with(LocalLauncher("forkserver", preload=["numpy.random"])) as executor:
        drawn = [numbers for _ in range(2) for numbers in executor.submit(draw).result()]
    assert len(drawn) == 4
    assert len(drawn[0]) >= 2, numpy
    for same_generator in zip(*drawn, strict=True):
        assert len(set(same_generator)) == 4


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_surroundings_are_those_of_now(method, tmp_path, monkeypatch):
    """A child has the caller's cwd, environment, sys.path, umask and argv at its submit."""
    with executor_with(LocalLauncher(method)) as executor:
        executor.submit(os.getpid).result()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SOME_VARIABLE", "now")
        monkeypatch.syspath_prepend(str(tmp_path))
        umask = os.umask(0o027)
        try:
            found = executor.submit(surroundings).result()
        finally:
            os.umask(umask)
    assert found == [(str(tmp_path), "now", str(tmp_path), 0o027, sys.argv)] * 2


def test_every_gang_has_new_processes():
    """No process is used twice."""
    with executor_with(LocalLauncher("forkserver")) as executor:
        pids = [pid for _ in range(5) for pid in executor.submit(os.getpid).result()]
    assert len(set(pids)) == 10


def test_unknown_preload_is_refused_at_once():
    """A name that no module has fails in the constructor."""
    with pytest.raises(ValueError, match="'no_such_module_at_all'"):
        LocalLauncher(preload=["no_such_module_at_all"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('not today')", "not today"),
        ("import threading\nthreading.Timer(600, print).start()", "Thread-"),
    ],
    ids=["does not import", "starts a thread"],
)
def test_preload_that_cannot_be_forked(source, reason, tmp_path, monkeypatch):
    """The gang fails with the module's name and the reason; spawn is still there."""
    (tmp_path / "bad_preload.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with executor_with(LocalLauncher("forkserver", preload=["bad_preload"])) as executor:
        error = executor.submit(os.getpid).exception()
    assert type(error) is PreloadError
    assert error.module == "bad_preload"
    assert reason in str(error)
    with executor_with(LocalLauncher("spawn")) as executor:
        assert len(executor.submit(os.getpid).result()) == 2


STARTS_RANKS = """
from rankexec import LocalLauncher, RankedExecutor
executor = RankedExecutor(2, launcher=LocalLauncher("forkserver", preload=["starting"]))
print(executor.submit(len, "ab").result())
"""


def test_preload_that_starts_ranks(tmp_path):
    """Each guardian would start another one, until the memory is full."""
    (tmp_path / "starting.py").write_text(STARTS_RANKS)
    out = run_script(
        tmp_path,
        "from rankexec import PreloadError\n"
        "try:\n    import starting\nexcept PreloadError as error:\n    print(error.module, error)",
    )
    assert out.startswith("starting")
    assert "'starting' starts ranks when it is imported" in out


def test_preload_that_touches_cuda(tmp_path, monkeypatch):
    """What has the driver loaded and its forks spoilt is refused, by name; what has not, is not.

    A library by the driver's name stands in for it, and a function for torch's answer.
    """
    pytest.importorskip("torch")
    driver = tmp_path / "libcuda.so.1"
    shutil.copy(importlib.util.find_spec("psutil._psutil_linux").origin, driver)
    (tmp_path / "harmless_preload.py").write_text("import torch.cuda")
    (tmp_path / "touching_preload.py").write_text(f"""
import ctypes, torch.cuda
ctypes.CDLL({str(driver)!r})
torch.cuda._is_in_bad_fork = lambda: True
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    launcher = LocalLauncher("forkserver", preload=["harmless_preload", "touching_preload"])
    with executor_with(launcher) as executor:
        error = executor.submit(os.getpid).exception()
    assert type(error) is PreloadError
    assert error.module == "touching_preload"
    assert "touches CUDA" in str(error)


def test_preload_that_touches_cuda_without_proc(tmp_path):
    """Where nothing lists what is loaded, a fork is asked."""
    pytest.importorskip("torch")
    (tmp_path / "touching_preload.py").write_text("""
import torch.cuda
torch.cuda._is_in_bad_fork = lambda: True
""")
    source = """
from rankexec import PreloadError
from rankexec.launchers import _preload
_preload._MAPPED = "/proc/no/such/file"
try:
    _preload.preload(["touching_preload"])
except PreloadError as error:
    print(error)
"""
    assert "touches CUDA" in run_script(tmp_path, source)


def test_guardian_that_is_not_needed_ends_at_once(tmp_path):
    """An executor that was not used does not wait for an import that nobody needs."""
    (tmp_path / "slow_preload.py").write_text("import time; time.sleep(600)")
    source = """
import time
from rankexec import LocalLauncher, RankedExecutor
began = time.monotonic()
with RankedExecutor(2, launcher=LocalLauncher("forkserver", preload=["slow_preload"])):
    pass
print(time.monotonic() - began < 5)
"""
    assert run_script(tmp_path, source) == "True\n"


# --- what is imported while the deputy serves ---


def has_later() -> bool:
    """Return whether this process was forked from a guardian that has imported it all."""
    names = [name.partition("_preload")[0] for name in sys.modules if "_preload_" in name]
    assert "first" in names
    return "later" in names


def has_later_everywhere(executor: RankedExecutor) -> bool:
    """Return whether a new gang has it."""
    return all(executor.submit(has_later).result())


def pids_of(future: RankedFuture) -> list[int]:
    """Wait until both ranks run; return their pids."""
    wait_until(lambda: len([rank for rank in future.ranks if rank.pid]) == 2)
    return [rank.pid for rank in future.ranks]


class Later:
    """A guardian that imports something for as long as a test wants."""

    def __init__(self, folder: Path) -> None:
        self.begun, self.go = folder / "begun", folder / "go"
        first, self.name = (f"{when}_preload_{uuid.uuid4().hex}" for when in ("first", "later"))
        (folder / f"{first}.py").touch()
        (folder / f"{self.name}.py").write_text(f"""
import os, time
open({str(self.begun)!r}, "w").close()
while not os.path.exists({str(self.go)!r}): time.sleep(0.01)
if os.stat({str(self.go)!r}).st_size: raise RuntimeError("not today")
""")
        # A name of its own, or it might share the guardian of an earlier test.
        names = [self.name, first]
        self.launcher = LocalLauncher("forkserver", preload=names)


@pytest.fixture
def later(tmp_path, monkeypatch) -> Iterator[Later]:
    """Have a module imported while a deputy serves."""
    monkeypatch.syspath_prepend(str(tmp_path))
    later = Later(tmp_path)
    monkeypatch.setattr(_guarded, "LATER", {later.name})
    yield later
    for key, guardian in list(GUARDIANS._by_key.items()):
        if later.name in (key or ((),))[0]:
            GUARDIANS.discard(guardian)


def test_gangs_do_not_wait_for_what_is_imported_later(later):
    """They run, fail and are cancelled beside it; one that comes after it has it."""
    with executor_with(later.launcher) as executor:
        assert executor.submit(has_later).result() == [False, False]
        wait_until(later.begun.exists)
        for _ in range(3):
            assert executor.submit(has_later).result() == [False, False]
        with pytest.raises(RankDied, match="exit code 7"):
            executor.submit(os._exit, 7).result()
        running = executor.submit(time.sleep, 600)
        wait_until(running.running)
        assert running.cancel()
        assert executor.submit(has_later).result() == [False, False]
        later.go.touch()
        wait_until(lambda: has_later_everywhere(executor))
        guardian = psutil.Process(guardian_pid())
        assert set(executor.submit(os.getppid).result()) == {guardian.pid}
        wait_until(lambda: not guardian.children(), "the deputy has ended")


def test_ranks_that_outlive_the_import(later, tmp_path):
    """Those that the deputy has started are its own: they return, die and are killed as others."""

    def wait_for(path: Path) -> str:
        while not path.exists():
            time.sleep(0.01)
        return path.read_text()

    with executor_with(later.launcher, devices=list("abcdefgh"), gather=False) as executor:
        futures = [executor.submit(wait_for, tmp_path / name) for name in "123"]
        pids = [pids_of(future) for future in futures]
        wait_until(later.begun.exists)
        later.go.touch()
        wait_until(lambda: has_later_everywhere(executor.options(gather=True)))
        (tmp_path / "1").write_text("returned")
        assert futures[0].result() == "returned"
        os.kill(pids[1][1], signal.SIGKILL)
        with pytest.raises(RankDied, match="SIGKILL"):
            futures[1].result()
        assert futures[2].cancel()
        wait_until(lambda: not any(map(is_running, pids[2])), "the cancelled ranks are gone")
        guardian = psutil.Process(guardian_pid())
        wait_until(lambda: not guardian.children(), "the deputy has ended")


@pytest.mark.parametrize("who", ["unused", "used", "running"])
def test_closing_beside_an_import(later, who):
    """Nobody waits for it to end."""
    with executor_with(later.launcher) as executor:
        if who == "used":
            executor.submit(has_later).result()
        if who == "running":
            future = executor.submit(time.sleep, 600)
            pids = pids_of(future)
        wait_until(later.begun.exists)
        GUARDIANS.discard(last_guardian())
        if who == "running":
            with pytest.raises(BrokenExecutor):
                future.result()
            wait_until(lambda: not any(map(is_running, pids)))
    assert not later.go.exists()


@pytest.mark.parametrize("who", ["guardian", "deputy"])
@pytest.mark.parametrize("relieved", [False, True], ids=["importing", "relieved"])
def test_killed_beside_an_import(later, who, relieved):
    """Their ranks end, the gang says so, and the next one runs."""
    with executor_with(later.launcher, devices=list("abcd")) as executor:
        running = executor.submit(time.sleep, 600)
        pids = pids_of(running)
        wait_until(later.begun.exists)
        guardian, deputy = guardian_pid(), psutil.Process(pids[0]).ppid()
        assert guardian != deputy
        if relieved:
            later.go.touch()
            wait_until(lambda: has_later_everywhere(executor))
        os.kill({"guardian": guardian, "deputy": deputy}[who], signal.SIGKILL)
        with pytest.raises(LauncherDied):
            running.result()
        wait_until(lambda: not any(map(is_running, [*pids, deputy])))
        later.go.touch()
        assert len(executor.submit(os.getpid).result()) == 2


def test_a_caller_killed_beside_an_import(tmp_path):
    """Its ranks end, the deputy, and the guardian in the midst of the import."""
    source = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from rankexec.launchers import _guarded
from test_forkserver import Later, executor_with, pids_of, wait_until
later = Later(Path({str(tmp_path)!r}))
_guarded.LATER = {{later.name}}
pids_of(executor_with(later.launcher).submit(time.sleep, 600))
wait_until(later.begun.exists)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run_python(["-c", source], tmp_path)  # which waits until nothing of it is left
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


def test_what_is_imported_later_and_fails(later, capfd):
    """It is said; gangs go on without it, and import it themselves if they like."""
    later.go.write_text("fail")
    with executor_with(later.launcher) as executor:
        for _ in range(3):
            assert executor.submit(has_later).result() == [False, False]
        said = []
        wait_until(lambda: said.append(capfd.readouterr().err) or "not today" in "".join(said))
        assert executor.submit(has_later).result() == [False, False]
        assert "ranks import that themselves" in "".join(said)


def test_standby_beside_an_import(later):
    """What the deputy has forked ahead is used; then the guardian forks ahead."""
    later.launcher.standby = True
    with executor_with(later.launcher) as executor:
        first = executor.submit(os.getpid).result()
        guardian = psutil.Process(guardian_pid())
        (deputy,) = guardian.children()
        ahead = children_after(deputy, first)
        assert set(executor.submit(os.getpid).result()) == ahead
        later.go.touch()
        wait_until(lambda: has_later_everywhere(executor))
        wait_until(lambda: not is_running(deputy.pid), "the deputy and what it had ahead are gone")
        ahead = children_after(guardian, ())
        assert set(executor.submit(os.getpid).result()) == ahead


def huge_kilobytes(pid: int) -> int:
    """Return how much of a process's own memory is in huge pages."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^AnonHugePages: +(\d+) kB", rollup, re.MULTILINE)[0])


def makes_huge_pages() -> bool:
    """Return whether the kernel puts memory into a page of 2 MiB when asked."""
    before = huge_kilobytes(os.getpid())
    memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * len(memory))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    collapse(-(-start // (2 << 20)) * (2 << 20), 2 << 20)
    return huge_kilobytes(os.getpid()) > before


def test_the_guardian_has_huge_pages(tmp_path, monkeypatch):
    """It asks for them when nobody waits, and ranks forked from then on find what they share."""
    if not makes_huge_pages():
        pytest.skip("this kernel makes no huge pages of 2 MiB when asked")
    (tmp_path / "large_preload.py").write_text("data = b'data' * (8 << 20)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with executor_with(LocalLauncher("forkserver", preload=["large_preload"])) as executor:
        pid = guardian_pid()
        wait_until(lambda: huge_kilobytes(pid) >= 16 << 10, "half of it is in huge pages")
        assert executor.submit(data_of_large_preload).result() == [b"data" * 2] * 2
        assert guardian_pid() == pid


def data_of_large_preload() -> bytes:
    """Return a part of what was preloaded."""
    return sys.modules["large_preload"].data[:8]


class Impatient(LocalLauncher):
    """Asks every rank for its stacks as soon as it is started."""

    def start(self, *args):
        """Start a gang's processes, with a question for each."""
        for process in super().start(*args):
            process.show_stacks()
            yield process


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_rank_that_cannot_show_its_stack_yet(method):
    """The question is not what it dies of."""
    with executor_with(Impatient(method)) as executor:
        for _ in range(5):
            assert len(executor.submit(os.getpid).result()) == 2


def test_guardian_killed_between_gangs():
    """It is started again, and nobody notices."""
    with executor_with(LocalLauncher()) as executor:
        executor.submit(os.getpid).result()
        old = guardian_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not is_running(old), "it is dead")
        assert len(executor.submit(os.getpid).result()) == 2
        assert guardian_pid() != old


@pytest.mark.parametrize("rank", [0, None], ids=["caller_rank=0", "caller_rank=None"])
def test_guardian_killed_during_a_gang(rank, tmp_path):
    """The gang ends with an error that says so; the next one works."""
    with executor_with(LocalLauncher(), caller_rank=rank) as executor:
        error = executor.submit(kill_guardian_of, str(tmp_path)).exception()
        assert type(error) is LauncherDied
        written = [int(path.name) for path in Path(tmp_path).iterdir()]
        wait_until(lambda: not any(is_running(pid) for pid in written), "its ranks are gone")
        assert len(executor.submit(os.getpid).result()) == 2


def kill_guardian_of(directory: str) -> None:
    """Kill this gang's guardian, from its last rank; all ranks wait for what comes."""
    if os.environ["RANK"] == "1":
        (Path(directory) / str(os.getpid())).touch()
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def test_variables_read_on_import_have_a_guardian_of_their_own():
    """A rank's TORCH_ variable was there before torch was imported; two guardians are kept."""
    with executor_with(LocalLauncher("forkserver")) as executor:
        first = guardian_of(executor)
        other = guardian_of(executor.options(env={"TORCH_SOMETHING": "1"}))
        assert first != other
        assert guardian_of(executor) == first
        third = guardian_of(executor.options(env={"TORCH_SOMETHING": "2"}))
        assert third not in (first, other)
        assert len(GUARDIANS._by_key) == 2
        wait_until(lambda: not all(map(is_running, (first, other))), "one of the older has ended")


def guardian_of(executor: RankedExecutor) -> int:
    """Return the pid of the guardian that starts this executor's ranks."""
    executor.submit(os.getpid).result()
    return guardian_pid()


def parked() -> list[psutil.Process]:
    """Return the children of the guardian."""
    return psutil.Process(guardian_pid()).children()


def parked_after(used: Iterable[int], count: int = 2) -> set[int]:
    """Wait until so many are parked, without `used`, which may still be on their way out."""
    return children_after(psutil.Process(guardian_pid()), used, count)


def children_after(parent: psutil.Process, used: Iterable[int], count: int = 2) -> set[int]:
    """Wait until a process has so many children, besides `used`."""

    def ahead() -> set[int] | None:
        pids = {process.pid for process in parent.children()} - set(used)
        return pids if len(pids) == count else None

    return wait_until(ahead, f"{count} parked")


def test_standby_uses_children_forked_ahead():
    """The next gang's processes exist before it is submitted, and end when nobody needs them."""
    launcher = LocalLauncher("forkserver", standby=True)
    with executor_with(launcher) as executor:
        ahead = parked_after(executor.submit(os.getpid).result())
        assert set(executor.submit(os.getpid).result()) == ahead
        assert not parked_after(ahead) & ahead


def test_standby_beside_a_long_gang():
    """The next gang's children are not only forked when this one has ended."""
    launcher = LocalLauncher("forkserver", standby=True)
    with executor_with(launcher) as executor:
        ahead = parked_after(executor.submit(os.getpid).result())
        future = executor.submit(time.sleep, 600)
        assert not parked_after(ahead) & ahead
        assert future.cancel()


def looked_around() -> dict[str, object]:
    """Return what a rank finds in its process."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "environment": {k: v for k, v in os.environ.items() if k != "MASTER_PORT"},
        "umask": umask,
        "path": sys.path,
        "arguments": sys.argv,
        "main": sorted(vars(sys.modules["__main__"])),
        "modules": sorted(sys.modules),
        "handlers": {n: str(signal.getsignal(n)) for n in signal.valid_signals()},
        "streams": [(s.fileno(), s.encoding, s.line_buffering) for s in (sys.stdout, sys.stderr)],
    }


def test_standby_children_are_as_fresh_as_others():
    """Nothing is seen of it that they were there before, and have run a call by themselves."""
    with executor_with(LocalLauncher("forkserver", standby=True)) as executor:
        ahead = parked_after(executor.submit(os.getpid).result())
        future = executor.submit(looked_around)
        found = future.result()
        assert {info.pid for info in future.ranks} == ahead
    with executor_with(LocalLauncher("forkserver")) as executor:
        assert found == executor.submit(looked_around).result()


def test_the_callers_directory_is_removed(tmp_path):
    """The caller may remove its directory: the guardian does not stay in it, and goes on."""
    source = """
import os, time
from rankexec import LocalLauncher, RankedExecutor
from test_forkserver import executor_with, parked_after

os.mkdir("gone")
os.chdir("gone")
with executor_with(LocalLauncher("forkserver", standby=True)) as executor:
    pids = executor.submit(os.getpid).result()
    os.chdir("..")
    os.rmdir("gone")
    for _ in range(2):
        ahead = parked_after(pids)
        pids = executor.submit(os.getpid).result()
    print(set(pids) == ahead)
"""
    assert run_script(tmp_path, source) == "True\n"


def test_standby_child_killed_while_parked():
    """The gang gets another one."""
    launcher = LocalLauncher("forkserver", standby=True)
    with executor_with(launcher) as executor:
        first = min(parked_after(executor.submit(os.getpid).result()))
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not is_running(first), "it is dead")
        assert len(set(executor.submit(os.getpid).result())) == 2


def test_standby_whose_children_do_not_live(tmp_path, monkeypatch):
    """A module may end every fork: the guardian does not try again and again."""
    deadly = tmp_path / "deadly"
    (tmp_path / "deadly_preload.py").write_text(f"""
import os
def end():
    if os.path.exists({str(deadly)!r}):
        with open({str(deadly)!r}, "a") as file:
            file.write(".")
        os._exit(1)
os.register_at_fork(after_in_child=end)
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_guarded, "LATER", set())  # what is imported is, and is looked at, before
    launcher = LocalLauncher("forkserver", preload=["deadly_preload"], standby=True)
    with executor_with(launcher, 1) as executor:
        (ahead,) = parked_after(executor.submit(os.getpid).result(), 1)
        wait_until(lambda: psutil.Process(ahead).status() == psutil.STATUS_SLEEPING, "it lives")
        deadly.touch()
        executor.submit(os.getpid).result()
        guardian = psutil.Process(guardian_pid())
        wait_until(lambda: deadly.stat().st_size > 0, "one was forked ahead")
        wait_until(lambda: not guardian.children(), "it has ended")
        wait_until(lambda: guardian.status() == psutil.STATUS_SLEEPING, "no other is forked")
        assert deadly.stat().st_size == 1


def test_standby_ends_unused():
    """Parked children are ended when nobody used them for `standby_ttl` seconds."""
    launcher = LocalLauncher("forkserver", standby=True, standby_ttl=0.3)
    with executor_with(launcher) as executor:
        executor.submit(os.getpid).result()
        wait_until(lambda: not parked(), "none parked")
        assert len(executor.submit(os.getpid).result()) == 2


def test_standby_for_a_smaller_gang():
    """As many are parked as the last gang had, not as many as ever."""
    with executor_with(LocalLauncher("forkserver", standby=True), 3) as executor:
        parked_after(executor.submit(os.getpid).result(), 3)
        small = executor.options(world_size=1)
        ahead = parked_after(small.submit(os.getpid).result(), 1)
        assert set(small.submit(os.getpid).result()) == ahead


def test_standby_of_another_launcher():
    """What one launcher has parked is not ended with another's executors."""
    with executor_with(LocalLauncher("forkserver", standby=True)) as executor:
        ahead = parked_after(executor.submit(os.getpid).result())
        with executor_with(LocalLauncher("forkserver", standby=True)):
            pass
        assert set(executor.submit(os.getpid).result()) == ahead


def test_a_guardian_that_ends_forks_nothing_ahead():
    """It does not replace the parked ranks that it ends, for which it would wait."""
    launcher = LocalLauncher("forkserver", standby=True)
    with executor_with(launcher, 4) as executor:
        for _ in range(6):
            parked_after(executor.submit(os.getpid).result(), 4)
            began = time.monotonic()
            launcher.close()
            assert time.monotonic() - began < 5


def test_nothing_is_left_of_standby_in_a_killed_caller(tmp_path):
    """Neither its guardian nor what is parked, nor anything in its place."""
    source = """
import os, signal
from rankexec import LocalLauncher
from test_forkserver import executor_with, guardian_pid, parked_after

executor = executor_with(LocalLauncher("forkserver", standby=True), 4)
parked_after(executor.submit(os.getpid).result(), 4)
print(guardian_pid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "script.py"
    script.write_text(source)
    for _ in range(3):
        done = run_python([str(script)], tmp_path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        wait_until(lambda pid=int(done.stdout): not is_running(pid), "it has ended", 10)


def test_half_a_message(capfd):
    """A caller that was killed just then: the guardian ends, and says nothing; so do its ranks."""
    with executor_with(LocalLauncher("forkserver")) as executor:
        executor.submit(os.getpid).result()
        guardian, pid = last_guardian(), guardian_pid()
        with socket.socket(fileno=os.dup(guardian._control.fileno())) as control:
            control.send(b"\0" * 12)
            control.shutdown(socket.SHUT_WR)
        wait_until(lambda: not guardian.alive(), "it has ended")
        assert len(executor.submit(os.getpid).result()) == 2
        assert guardian_pid() != pid
    assert "Traceback" not in capfd.readouterr().err


def test_standby_without_room():
    """At the guardian's limit of descriptors no rank is forked ahead; gangs work as before."""
    launcher = LocalLauncher("forkserver", standby=True)
    with executor_with(launcher, 1) as executor:
        executor.submit(os.getpid).result()
        guardian = psutil.Process(guardian_pid())
        wait_until(lambda: not any(is_deputy(child.pid) for child in guardian.children()))
        parked_after(executor.submit(os.getpid).result(), 1)
        wait_until(lambda: guardian.status() == psutil.STATUS_SLEEPING, "it has closed its ends")
        _, hard = before = guardian.rlimit(psutil.RLIMIT_NOFILE)
        used = {int(name) for name in os.listdir(f"/proc/{guardian.pid}/fd")}
        free = [number for number in range(100) if number not in used]
        guardian.rlimit(psutil.RLIMIT_NOFILE, (free[8], hard))  # a start needs 5, one ahead 10
        try:
            for _ in range(3):
                assert len(executor.submit(os.getpid).result()) == 1
                wait_until(lambda: not parked(), "its end")
            assert guardian.cpu_percent(0.2) < 50  # it does not try again and again
        finally:
            guardian.rlimit(psutil.RLIMIT_NOFILE, before)
        assert guardian_pid() == guardian.pid
        parked_after(executor.submit(os.getpid).result(), 1)


def test_standby_ends_while_it_is_taken():
    """A rank is taken or taken back, and never both: calls come just when `standby_ttl` is over."""
    launcher = LocalLauncher("forkserver", standby=True, standby_ttl=0.02)
    with executor_with(launcher) as executor:
        for number in range(40):
            assert len(set(executor.submit(os.getpid).result())) == 2
            time.sleep(number / 1000)


def test_offers_are_taken_once():
    """Whoever is first has a rank's ends, all of them, and nobody else."""
    first, second = offers_socket()
    with first, second:
        assert receive_ends(first) is None
        for key in (-1, -2):
            ours, theirs = joined()
            send_ends(second, key, ours)
            close_all([*ours, *theirs])
        with first.dup() as another:
            taken = [receive_ends(first), receive_ends(another)]
        assert [key for key, _ in taken] == [-1, -2]
        assert receive_ends(first) is None
        for _, ends in taken:
            assert len(ends) == DESCRIPTORS
            assert not any(os.get_inheritable(end) for end in ends)
            close_all(ends)


@pytest.mark.parametrize("seconds", [30 * 86400, float("inf")])
def test_standby_without_end(seconds):
    """More than the kernel takes at once does not end the guardian."""
    launcher = LocalLauncher("forkserver", standby=True, standby_ttl=seconds)
    with executor_with(launcher) as executor:
        ahead = parked_after(executor.submit(os.getpid).result())
        assert set(executor.submit(os.getpid).result()) == ahead


def test_nothing_is_left_of_standby(tmp_path):
    """A script with parked children leaves nothing, with a shutdown and without one."""
    source = """
import os
from rankexec import LocalLauncher, RankedExecutor
executor = RankedExecutor(2, launcher=LocalLauncher("forkserver", standby=True))
executor.submit(os.getpid).result()
print("done")
"""
    assert run_script(tmp_path, source) == "done\n"
    assert run_script(tmp_path, source + "executor.shutdown()") == "done\n"


def test_a_finalizer_that_tells_the_guardian(monkeypatch):
    """The collector may run one in the midst of a message; it takes its turn."""
    sent = line.send_files

    def collect_and_send(*args):
        last_guardian().tell("park", 0, 0.0, ())  # as an executor does that is forgotten
        return sent(*args)

    with executor_with(LocalLauncher("forkserver")) as executor:
        monkeypatch.setattr(line, "send_files", collect_and_send)
        assert len(executor.submit(os.getpid).result()) == 2
        monkeypatch.undo()
        assert len(executor.submit(os.getpid).result()) == 2
