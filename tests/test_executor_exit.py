"""The end of the interpreter: pending gangs are finished first, and nothing is left."""

from __future__ import annotations

import textwrap

import pytest
from helpers import run_python, run_script

IMPORTS = """
import sys, time
import ranked_functions
from rankexec import LocalLauncher, RankedExecutor

spawn = LocalLauncher("spawn")  # its guardian imports less

"""


def script(body: str) -> str:
    """Return the source of a script with its imports."""
    return IMPORTS + textwrap.dedent(body)


@pytest.mark.parametrize("launcher", ["None", "spawn"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_pending_gangs(tmp_path, ranks, launcher) -> None:
    """Those that run and those that wait are finished, and their callbacks called, in order."""
    out = run_script(
        tmp_path,
        script(f"""
            executor = RankedExecutor({ranks}, caller_rank=None, max_gangs=1, launcher={launcher})
            for value in range(3):
                future = executor.submit(ranked_functions.returning, value)
                future.add_done_callback(lambda future: print(future.result()))
            print("end of script")
        """),
    )
    assert out.split("\n") == ["end of script", "0", "1", "2", ""]


def test_a_first_gang_that_starts_at_exit(tmp_path) -> None:
    """Whatever a gang has to import then can be imported before, and was."""
    out = run_script(
        tmp_path,
        script("""
            import threading
            from helpers import wait_until
            from rankexec import _exit

            executor = RankedExecutor(
                1, caller_rank=None, devices=["a"], max_gangs=1, launcher=spawn
            )
            held = threading.Event()

            def hold():
                with executor._shared.slots.taken(1):
                    held.set()
                    wait_until(lambda: _exit._exiting)

            threading.Thread(target=hold).start()
            held.wait()
            future = executor.submit(ranked_functions.returning, 5)
            future.add_done_callback(lambda future: print(future.result()))
        """),
    )
    assert out == "5\n"


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(3)", 3), ("raise KeyError", 1), ("executor.shutdown(False)", 0)]
)
def test_however_the_script_ends(tmp_path, ending, code) -> None:
    """The exit code is the script's; the gang is finished all the same."""
    (tmp_path / "script.py").write_text(
        script(f"""
            executor = RankedExecutor(2, caller_rank=None, launcher=spawn)
            future = executor.submit(time.sleep, 0.3)
            future.add_done_callback(lambda future: print("result", future.result()))
            {ending}
        """)
    )
    done = run_python(["script.py"], tmp_path)
    assert (done.returncode, done.stdout) == (code, "result None\n")
    assert ("KeyError" in done.stderr) is (code == 1)


@pytest.mark.parametrize("caller_rank", [0, None])
def test_an_idle_executor(tmp_path, caller_rank) -> None:
    """One that was not shut down does not keep the interpreter, and leaves no process."""
    out = run_script(
        tmp_path,
        script(f"""
            executor = RankedExecutor(2, caller_rank={caller_rank}, launcher=spawn)
            print(executor.submit(ranked_functions.returning, 5).result())
        """),
    )
    assert out == "5\n"


@pytest.mark.parametrize("caller_rank", [0, None])
def test_nothing_is_left_while_the_script_goes_on(tmp_path, caller_rank) -> None:
    """With its last executor a process has nothing of ours any more: no child, thread, pipe."""
    out = run_script(
        tmp_path,
        script(f"""
            import gc, os, threading
            from helpers import own_processes, wait_until

            def everything():
                gc.collect()
                pids = own_processes()
                return pids, threading.active_count(), len(os.listdir("/proc/self/fd"))

            for ending in ("warm up", "shutdown", "drop", "drop"):
                executor = RankedExecutor(2, caller_rank={caller_rank}, launcher=spawn)
                executor.submit(ranked_functions.returning, 5).result()
                if ending == "shutdown":
                    executor.shutdown()
                del executor
                if ending == "warm up":
                    wait_until(lambda: everything()[:2] == ([], 1))
                    before = everything()
                wait_until(lambda: everything() == before, ending, seconds=10)
        """),
    )
    assert out == ""


def test_gangs_of_an_executor_that_nobody_holds(tmp_path) -> None:
    """They are finished too."""
    out = run_script(
        tmp_path,
        script("""
            def submit():
                executor = RankedExecutor(1, caller_rank=None, launcher=spawn)
                future = executor.submit(ranked_functions.returning, 5)
                future.add_done_callback(lambda future: print(future.result()))

            submit()
        """),
    )
    assert out == "5\n"


def test_a_callback_that_submits(tmp_path) -> None:
    """A gang submitted while the interpreter ends is refused in the standard library's words."""
    out = run_script(
        tmp_path,
        script("""
            from helpers import wait_until
            from rankexec import _exit

            executor = RankedExecutor(1, caller_rank=None, launcher=spawn)

            def submit_more(future):
                wait_until(lambda: _exit._exiting)
                try:
                    executor.submit(int)
                except RuntimeError as error:
                    print(error)

            executor.submit(int).add_done_callback(submit_more)
        """),
    )
    assert out == "cannot schedule new futures after interpreter shutdown\n"


def test_a_forked_process(tmp_path) -> None:
    """It cannot use its parent's executor, and leaves it alone; it can have one of its own."""
    out = run_script(
        tmp_path,
        script("""
            import os

            executor = RankedExecutor(1, caller_rank=None, launcher=spawn)
            print(executor.submit(ranked_functions.returning, 1).result(), flush=True)
            child = os.fork()
            if not child:
                try:
                    executor.submit(int)
                except RuntimeError as error:
                    print(error)
                with RankedExecutor(1, caller_rank=None, launcher=spawn) as own:
                    print(own.submit(ranked_functions.returning, 2).result(), flush=True)
                del executor
                os._exit(0)
            os.waitpid(child, 0)
            print(executor.submit(ranked_functions.returning, 3).result())
        """),
        env={"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"},
    )
    first, said, *rest = out.splitlines()
    assert (first, rest) == ("1", ["2", "3"])
    assert "before a fork" in said


@pytest.mark.parametrize("ending", ["sys.exit()", "os._exit(0)"])
def test_a_process_forked_while_a_gang_runs(tmp_path, ending) -> None:
    """It ends as any other, and what is its own ends with its own executors."""
    out = run_script(
        tmp_path,
        script(f"""
            import os
            import psutil

            executor = RankedExecutor(1, caller_rank=None)
            running = executor.submit(time.sleep, 600)
            while running.ranks == [] or running.ranks[0].ready is None:
                time.sleep(0.01)
            child = os.fork()
            if not child:
                executor.shutdown(wait=False)
                with RankedExecutor(1):
                    print(len(psutil.Process().children()), flush=True)
                print(len(psutil.Process().children()), flush=True)
                {ending}
            os.waitpid(child, 0)
            print(running.cancel())
            executor.shutdown()
        """),
        env={"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"},
    )
    assert out.split() == ["1", "0", "True"]


@pytest.mark.parametrize(
    ("use", "printed"),
    [("pass", ""), ("next(results)", "a\n"), ("del results", ""), ("zip(results)", "")],
)
def test_a_map_that_was_not_finished(tmp_path, use, printed) -> None:
    """With a caller_rank its gangs do not run any more, and that is said."""
    (tmp_path / "script.py").write_text(
        script(f"""
            executor = RankedExecutor(1, launcher=spawn)
            results = executor.map(print, "abc")
            {use}
        """)
    )
    done = run_python(["script.py"], tmp_path)
    assert (done.returncode, done.stdout) == (0, printed)
    assert done.stderr.count("RuntimeWarning") == 1
    assert "RankedExecutor.map was never finished" in done.stderr


@pytest.mark.parametrize(
    "use", ["list(results)", "next(results); results.close()", "executor.shutdown()"]
)
def test_a_map_that_was_finished_or_closed(tmp_path, use) -> None:
    """There is nothing to be said about it."""
    out = run_script(
        tmp_path,
        script(f"""
            executor = RankedExecutor(1, launcher=spawn)
            results = executor.map(print, "a")
            {use}
        """),
    )
    assert out == "a\n"


def test_a_map_of_children(tmp_path) -> None:
    """Its gangs were submitted, so they are finished."""
    run_script(
        tmp_path,
        script(f"""
            executor = RankedExecutor(1, caller_rank=None, launcher=spawn)
            executor.map(ranked_functions.meet, ["{tmp_path}"] * 2, "ab")
        """),
    )
    assert {"a", "b"} <= {path.name for path in tmp_path.iterdir()}
