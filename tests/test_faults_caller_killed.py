"""SIGKILL of the caller: no code of ours runs in it, and yet nothing of its gangs is left."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import faulty_ranks
import psutil
import pytest
from helpers import Marks, is_running, running_script, wait_until
from test_faults import WORLD, check_usable

from rankexec import RankedExecutor

LIMIT = 10.0
"""Seconds for what takes a second at most."""
SCRIPT = """\
with RankedExecutor(2, caller_rank={caller_rank}, ctx={ctx}) as executor:
    executor.submit({call}).result()
"""


@contextlib.contextmanager
def killed(tmp_path: Path, body: str, count: int = WORLD):
    """Run a script until that many marks are there, and kill it: all it had started is gone."""
    marks = Marks(tmp_path / "marks")
    with running_script(tmp_path, marks, body) as script:
        wait_until(lambda: len(marks.names()) >= count or script.poll() is not None)
        assert script.poll() is None, script.communicate()
        below = psutil.Process(script.pid).children(recursive=True)
        script.kill()
        began = time.monotonic()
        yield marks
        wait_until(lambda: not any(is_running(process.pid) for process in below), "gone", LIMIT)
        wait_until(lambda: not marks.living(), "gone", LIMIT)
        assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize("busy", ["hang", "spin", "c_call", "c_call_with_gil", "stop"])
@pytest.mark.parametrize("caller_rank", [0, None], ids=["caller_rank=0", "caller_rank=None"])
def test_ranks_end(tmp_path, caller_rank, busy):
    """Whatever the ranks are doing, they end, and the guardian with them."""
    call = f"marked, marks, partial(one_does, 1, {busy})"
    with killed(tmp_path, SCRIPT.format(caller_rank=caller_rank, ctx=None, call=call)):
        pass


@pytest.mark.parametrize("caller_rank", [0, None], ids=["caller_rank=0", "caller_rank=None"])
def test_ranks_in_a_collective_end(tmp_path, caller_rank):
    """So do ranks in one collective after the other."""
    pytest.importorskip("torch")
    call = "marked, marks, all_reduce_for_ever"
    body = SCRIPT.format(caller_rank=caller_rank, ctx="TorchDDPCtx()", call=call)
    with killed(tmp_path, body):
        pass


@pytest.mark.parametrize(
    "leave", ["leave_popen", "leave_session", "leave_orphan", "leave_daemon", "leave_runaway"]
)
def test_what_ranks_have_started_ends(tmp_path, leave):
    """Their processes go too, those that tried to get away among them."""
    call = f"one_does, 1, partial(leaving_behind, {leave}, marks, hang)"
    with killed(tmp_path, SCRIPT.format(caller_rank=None, ctx=None, call=call), 1) as marks:
        pass
    assert not marks.held()


def test_ranks_that_start_end(tmp_path):
    """Ranks that have not unpacked their call yet are no exception."""
    call = "mark_with, marks, WhenUnpickled(1, partial(marked, marks, hang))"
    with killed(tmp_path, SCRIPT.format(caller_rank=0, ctx=None, call=call), 1):
        pass


def test_forked_processes_of_the_caller_do_not_keep_ranks_alive(tmp_path):
    """They hold the ends of all its pipes, and live on: it is not by a pipe that ranks know."""
    body = """\
        with RankedExecutor(2, caller_rank=None) as executor:
            future = executor.submit(marked, marks, hang)
            while len(os.listdir(marks)) < 2:
                time.sleep(0.01)
            forked = os.fork()
            if not forked:
                hang()
                os._exit(0)
            with open(os.path.join(marks, "forked"), "w") as file:
                file.write(str(forked))
            future.result()
        """
    marks = Marks(tmp_path / "marks")
    file = marks.directory / "forked"
    with running_script(tmp_path, marks, body) as script:
        wait_until(lambda: file.exists() and file.read_text())
        forked = psutil.Process(int(file.read_text()))
        script.kill()
        try:
            wait_until(lambda: not marks.living(), "gone", LIMIT)
            assert forked.is_running()
        finally:
            forked.kill()


def test_idle_guardian_ends(tmp_path):
    """Between gangs there is only the guardian, and it goes too."""
    body = """\
        executor = RankedExecutor(2, caller_rank=None)
        executor.submit(int).result()
        os.environ["RANK"] = "0"  # for the mark
        marked(marks, hang)
        """
    with killed(tmp_path, body, 1):
        pass


def test_other_callers_are_not_touched(tmp_path):
    """Two callers on one host: one is killed, the other's gang goes on."""
    call = "marked, marks, hang"
    with RankedExecutor(WORLD, caller_rank=None) as executor:
        mine = Marks(tmp_path / "mine")
        future = executor.submit(faulty_ranks.wait_for_file, str(mine), "go")
        mine.wait_for(WORLD)
        with killed(tmp_path, SCRIPT.format(caller_rank=None, ctx=None, call=call)):
            pass
        assert not future.done()
        (mine.directory / "go").touch()
        future.result()
        check_usable(executor)
