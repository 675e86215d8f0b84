"""Ctrl-C: scripts in a process group of their own, to which SIGINT is sent as a terminal does."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest
from helpers import Marks, running_script, wait_until
from test_faults import WORLD

from rankexec import RankedExecutor

LIMIT = 10.0
"""Seconds for what takes half a second at most."""


@pytest.fixture
def interrupted(tmp_path):
    """Run a script until ranks have left their marks, press Ctrl-C, return what it prints."""

    def run(body, count=WORLD, number=signal.SIGINT, returncode=0):
        marks = Marks(tmp_path / "marks")
        with running_script(tmp_path, marks, body) as script:
            wait_until(lambda: len(marks.names()) >= count or script.poll() is not None)
            os.killpg(script.pid, number)
            began = time.monotonic()
            out, err = script.communicate(timeout=60)
            seconds = time.monotonic() - began
            wait_until(lambda: not marks.living())
        assert script.returncode == returncode, err
        assert seconds < LIMIT
        return out, err

    return run


# Every script prints what came out of the call, and what is as it was, or is not.
AFTER = """\
print("handler", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print("wakeup fd", signal.set_wakeup_fd(-1))
print("variable", os.environ.get("RANK"))
"""
AS_BEFORE = "handler True\nwakeup fd -1\nvariable None\n"
INTERRUPTED = "KeyboardInterrupt\n" + AS_BEFORE

IN_MAIN_THREAD = """\
with RankedExecutor(2, ctx={ctx}) as executor:
    try:
        executor.submit({call})
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
"""
IN_ASYNCIO = """\
async def main():
    with RankedExecutor(2, ctx={ctx}) as executor:
        executor.submit({call})

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""
# Two threads print at the same time, so each line with its end. No join: one that Ctrl-C breaks off
# takes a running thread for a stopped one (bpo-45274), and the next one does not wait.
IN_ANOTHER_THREAD = """\
said = threading.Event()

def submit():
    try:
        print(f"future {{executor.submit({call}).result()}}\\n", end="")
    except CancelledError:
        print("CancelledError\\n", end="")
    finally:
        said.set()

try:
    with RankedExecutor(2, ctx={ctx}) as executor:
        threading.Thread(target=submit).start()
        said.wait()
except KeyboardInterrupt:
    print("KeyboardInterrupt\\n", end="")
said.wait()
"""
APART = """\
with RankedExecutor(2, ctx={ctx}, caller_rank=None) as executor:
    future = executor.submit({call})
    try:
        future.result()
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
        future.cancel()
"""
callers = pytest.mark.parametrize(
    "script",
    [IN_MAIN_THREAD, IN_ASYNCIO, APART],
    ids=["main thread", "asyncio.run", "caller_rank=None"],
)


@callers
def test_ctrl_c(interrupted, script):
    """Rank 0 sleeps: KeyboardInterrupt comes out of `submit`, and the ranks are gone."""
    out, err = interrupted(script.format(ctx=None, call="marked, marks, hang") + AFTER)
    assert out == INTERRUPTED
    assert err == ""


@pytest.mark.parametrize("action", ["spin", "wait_for_lock", "wait_for_pipe"])
def test_ctrl_c_in_python(interrupted, action):
    """Wherever a handler of Python's gets to run."""
    call = f"marked, marks, partial(one_does, 0, {action}, spin)"
    out, err = interrupted(IN_MAIN_THREAD.format(ctx=None, call=call) + AFTER)
    assert out == INTERRUPTED
    assert err == ""


@pytest.mark.parametrize("peer", ["hang", "spin", "c_call_with_gil", "stop"])
def test_ctrl_c_whatever_the_peer_does(interrupted, peer):
    """A stuck but living peer is ended."""
    call = f"marked, marks, partial(one_does, 1, {peer})"
    out, err = interrupted(IN_MAIN_THREAD.format(ctx=None, call=call) + AFTER)
    assert out == INTERRUPTED
    assert err == ""


def test_ctrl_c_while_ranks_start(interrupted):
    """The caller waits in Python until all ranks are ready, and wakes up."""
    call = "mark_with, marks, WhenUnpickled(1, partial(marked, marks, hang))"
    out, err = interrupted(IN_MAIN_THREAD.format(ctx=None, call=call) + AFTER, count=1)
    assert out == INTERRUPTED
    assert err == ""


def test_ctrl_c_while_modules_are_preloaded(interrupted, tmp_path):
    """The guardian imports for long and cannot listen: it ends with the executor's block."""
    (tmp_path / "slow_to_import.py").write_text(
        "import faulty_ranks, os\n"
        "os.environ['RANK'] = '0'\n"
        "faulty_ranks.mark(os.environ['MARKS'])\n"
        "faulty_ranks.hang()\n"
    )
    body = """\
from rankexec import LocalLauncher
os.environ["MARKS"] = marks
launcher = LocalLauncher("forkserver", preload=["slow_to_import"])
try:
    with RankedExecutor(2, launcher=launcher) as executor:
        executor.submit(int)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""
    out, err = interrupted(body + AFTER, count=1)
    assert (out, err) == (INTERRUPTED, "")


@callers
def test_ctrl_c_in_a_collective(interrupted, script):
    """Rank 0 waits in C++ for a rank that sleeps; the handler alone would never run."""
    pytest.importorskip("torch")
    call = "marked, marks, partial(one_does, 0, all_reduce)"
    out, err = interrupted(script.format(ctx="TorchDDPCtx()", call=call) + AFTER)
    assert out == INTERRUPTED
    assert "Traceback" not in err


def test_ctrl_c_in_a_rendezvous(interrupted):
    """Rank 0 waits in C++ for a rank that does not come."""
    pytest.importorskip("torch")
    script = IN_MAIN_THREAD.format(ctx="partial(NeverJoins, 1, marks)", call="int")
    out, err = interrupted(script + AFTER)
    assert out == INTERRUPTED
    assert "Traceback" not in err


def test_ctrl_c_with_rank_0_in_another_thread(interrupted):
    """The main thread gets its KeyboardInterrupt; with the executor's block the gang ends."""
    script = IN_ANOTHER_THREAD.format(ctx=None, call="marked, marks, partial(one_does, 0, spin)")
    out, err = interrupted(script + AFTER)
    assert sorted(out.splitlines()) == sorted(["CancelledError", *INTERRUPTED.splitlines()]), err


def test_ctrl_c_that_nobody_catches(interrupted):
    """The script ends by it, as any other does."""
    body = """\
        with RankedExecutor(2) as executor:
            executor.submit(marked, marks, hang)
        """
    out, err = interrupted(body, returncode=-signal.SIGINT)
    assert out == ""
    assert err.endswith("KeyboardInterrupt\n")
    assert "in hang\n" in err  # where the function was


def test_swallowed_ctrl_c_comes_out_of_submit(interrupted):
    """A bare `except` in the function does not swallow it."""
    call = "marked, marks, partial(one_does, 0, swallow_one)"
    out, err = interrupted(IN_MAIN_THREAD.format(ctx=None, call=call) + AFTER)
    assert (out, err) == (INTERRUPTED, "")


SAVES = """\
def work():
    mark(marks)
    try:
        {fails}
    finally:
        if os.environ["RANK"] == "0":
            open("saving", "w").close()
            for part in range(5):
                time.sleep({seconds})
                open(f"part{{part}}", "w").close()

with RankedExecutor({ranks}) as executor, executor.session() as session:
    try:
        {runs}.submit(work).result()
    except BaseException as error:
        print(type(error).__name__, sum(name.startswith("part") for name in os.listdir()))
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("runs", "seconds"), [("executor", 0.4), ("session", 0.1)])
def test_what_the_function_does_at_its_end(interrupted, runs, seconds, ranks):
    """A checkpoint that it saves in its `finally`, say, is whole: one Ctrl-C is one exception."""
    body = SAVES.format(fails="hang()", seconds=seconds, ranks=ranks, runs=runs)
    assert interrupted(body, count=ranks) == ("KeyboardInterrupt 5\n", "")


def test_what_the_function_does_when_another_rank_fails(tmp_path):
    """The same."""
    fails = "hang() if os.environ['RANK'] == '0' else 1 / 0"
    body = SAVES.format(fails=fails, seconds=0.4, ranks=2, runs="executor")
    with running_script(tmp_path, Marks(tmp_path / "marks"), body) as script:
        assert script.communicate(timeout=60) == ("ZeroDivisionError 5\n", "")


def test_a_second_ctrl_c(tmp_path):
    """It ends also what the function does at its end."""
    body = SAVES.format(fails="hang()", seconds=600, ranks=2, runs="executor")
    marks = Marks(tmp_path / "marks")
    with running_script(tmp_path, marks, body) as script:
        wait_until(lambda: len(marks.names()) == 2)
        script.send_signal(signal.SIGINT)
        wait_until((tmp_path / "saving").exists)
        script.send_signal(signal.SIGINT)
        assert script.communicate(timeout=60) == ("KeyboardInterrupt 0\n", "")


def test_many_ctrl_c(tmp_path):
    """Pressed again and again while the gang is ended, it tears nothing apart."""
    body = textwrap.dedent("""\
        def press(marks):
            while len(os.listdir(marks)) < 2:
                time.sleep(0.001)
            while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.0005)

        with RankedExecutor(2) as executor:
            for name in "abcdefgh":
                own = os.path.join(marks, name)
                os.mkdir(own)
                thread = threading.Thread(target=press, args=(own,), daemon=True)
                thread.start()
                try:
                    executor.submit(marked, own, hang)
                except KeyboardInterrupt:
                    print("KeyboardInterrupt", os.environ.get("RANK"))
                thread.join()
            print(executor.submit(one_does, 0, int, int).result())
        """)
    with running_script(tmp_path, Marks(tmp_path / "marks"), body + AFTER) as script:
        out, err = script.communicate(timeout=60)
    assert (out, err) == ("KeyboardInterrupt None\n" * 8 + "0\n" + AS_BEFORE, "")


def test_users_handler_stays(interrupted):
    """With a SIGINT handler of the user's, Ctrl-C is the user's, and the gang goes on."""
    out, err = interrupted("""\
        arrived = []

        def handler(number, frame):
            arrived.append(number)
            open(os.path.join(marks, "pressed"), "w").close()

        signal.signal(signal.SIGINT, handler)
        with RankedExecutor(2) as executor:
            print(executor.submit(wait_for_file, marks, "pressed").result())
        print(arrived == [signal.SIGINT], signal.getsignal(signal.SIGINT) is handler)
        """)
    assert (out, err) == ("None\nTrue True\n", "")


def test_users_handler_that_raises(interrupted):
    """What it raises in rank 0 is rank 0's outcome, like any exception."""
    out, err = interrupted("""\
        class Pressed(Exception):
            pass

        def handler(number, frame):
            raise Pressed

        signal.signal(signal.SIGINT, handler)
        with RankedExecutor(2) as executor:
            print(type(executor.submit(marked, marks, hang).exception()).__name__)
        print(signal.getsignal(signal.SIGINT) is handler)
        """)
    assert (out, err) == ("Pressed\nTrue\n", "")


def test_ignored_sigint_stays_ignored(tmp_path):
    """A caller that ignores SIGINT (a background job of a shell) goes on."""
    marks = Marks(tmp_path / "marks")
    body = """\
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with RankedExecutor(2) as executor:
            print(executor.submit(wait_for_file, marks, "pressed").result())
        print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        """
    with running_script(tmp_path, marks, body) as script:
        marks.wait_for(WORLD)
        os.killpg(script.pid, signal.SIGINT)
        (marks.directory / "pressed").touch()
        assert script.communicate(timeout=60) == ("None\nTrue\n", "")


def test_next_gang_after_ctrl_c(interrupted):
    """The executor is usable."""
    body = IN_MAIN_THREAD.format(ctx=None, call="marked, marks, hang")
    body += "    print(executor.submit(one_does, 0, int, int).result())\n"
    out, err = interrupted(body)
    assert (out, err) == ("KeyboardInterrupt\n0\n", "")


def test_asyncio_hears_its_signals_after_a_gang(interrupted):
    """Its wakeup descriptor and handlers are back in their place."""
    out, err = interrupted("""\
        async def main():
            heard = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
            with RankedExecutor(2) as executor:
                try:
                    executor.submit(marked, marks, hang)
                except KeyboardInterrupt:
                    print("KeyboardInterrupt")
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(heard.wait(), 30)
            print("heard")

        asyncio.run(main())
        """)
    assert (out, err) == ("KeyboardInterrupt\nheard\n", "")


def test_other_signals_reach_the_wakeup_fd_of_the_user():
    """While ours stands in its place, the one before is fed."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    before = signal.set_wakeup_fd(writer)

    def signal_and_wait():
        os.kill(os.getpid(), signal.SIGUSR1)
        return wait_until(lambda: _read(reader))

    try:
        with RankedExecutor(1) as executor:
            assert executor.submit(signal_and_wait).result() == bytes([signal.SIGUSR1])
        assert signal.set_wakeup_fd(writer) == writer
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, handler)
        os.close(reader)
        os.close(writer)


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 100)
    except BlockingIOError:
        return b""
