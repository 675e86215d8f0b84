"""A caller that has SIGPIPE at its default, as command line programs do, and ranks that die."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from helpers import run_python, run_script

from rankexec._gang.line import Line

WITH_TORCH = importlib.util.find_spec("torch") is not None

START = """
import os, random, signal, sys, threading, time
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from rankexec import LocalLauncher, RankDied, RankedExecutor, SessionLost, TorchDDPCtx

def fail(how):
    if os.environ["RANK"] == "1":
        if how == "raise":
            raise ZeroDivisionError
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if how != "return":
        time.sleep(600)

def die_within(seconds):
    "Have rank 1 killed at some moment, its own end or the gang's beginning perhaps."
    if os.environ["RANK"] == "1":
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        time.sleep(600)

def die_in_a_collective(seconds):
    import torch.distributed
    tensor = torch.ones(100_000)
    if os.environ["RANK"] == "1":
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        torch.distributed.all_reduce(tensor)
"""


def test_a_line_to_nobody(tmp_path):
    """To send where nobody receives is an error, and no signal."""
    source = """
import os, signal, socket
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from rankexec._gang.line import Line
from rankexec._gang.loop import Loop

for data, files in ((b"x", []), (b"x" * 100_000, []), (b"x", [0])):
    ours, theirs = socket.socketpair()
    line = Line(ours.detach())
    theirs.close()
    try:
        line.send(data, files)
    except BrokenPipeError:
        print("broken")
loop = Loop()
loop._awake.close()  # in between of `close`
loop.tell(print)
"""
    assert run_script(tmp_path, source) == "broken\n" * 3


@pytest.mark.parametrize("session", [False, True], ids=["gang", "session"])
@pytest.mark.parametrize("caller_rank", [0, None])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ranks_that_fail(tmp_path, method, caller_rank, session):
    """The caller gets the exception; the next gang runs."""
    source = f"""{START}
launcher = LocalLauncher({method!r})
with RankedExecutor(3, caller_rank={caller_rank}, output="caller", launcher=launcher) as executor:
    for how in ("return", "raise", "exit", "kill"):
        where = executor.session() if {session} else executor
        print(type(where.submit(fail, how).exception()).__name__)
        if {session}:
            where.close()
    executor.submit(fail, "return").result()
    print(signal.getsignal(signal.SIGPIPE).name, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    errors = ["NoneType", "ZeroDivisionError", "RankDied", "RankDied"]
    assert run_script(tmp_path, source).split("\n") == [*errors, "SIG_DFL set()", ""]


@pytest.mark.parametrize("caller_rank", [0, None])
def test_ranks_that_die_at_any_moment(tmp_path, caller_rank):
    """Of gangs and sessions; the moments lie between the start of a gang and its end."""
    source = f"""{START}
rng = random.Random(7)
with RankedExecutor(3, caller_rank={caller_rank}, output="caller", timeout=60) as executor:
    for _ in range(30):
        error = executor.submit(die_within, rng.random() * 0.02).exception()
        assert error is None or type(error) is RankDied, error
    for _ in range(10):
        with executor.session() as session:
            errors = [type(session.submit(die_within, rng.random() * 0.02).exception())]
            try:
                errors.append(type(session.submit(fail, "return").exception()))
            except SessionLost:
                pass
            assert set(errors) <= {{type(None), RankDied, SessionLost}}, errors
    print("alive")
"""
    assert run_script(tmp_path, source) == "alive\n"


@pytest.mark.skipif(not WITH_TORCH, reason="needs torch")
@pytest.mark.parametrize("caller_rank", [0, None])
def test_ranks_that_die_in_a_collective(tmp_path, caller_rank):
    """Threads of gloo write to the dead peer, and the store's to a dead client."""
    source = f"""import torch
{START}
rng = random.Random(7)
with RankedExecutor(
    3, caller_rank={caller_rank}, ctx=TorchDDPCtx(), output="caller", timeout=60
) as executor:
    for _ in range(8):
        error = executor.submit(die_in_a_collective, rng.random() * 0.05).exception()
        assert type(error) is RankDied, error
    print("alive", signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    done = run_python(["-c", source], tmp_path)  # torch may say something on stderr
    assert (done.returncode, done.stdout) == (0, "alive set()\n"), done.stderr


def test_guardian_and_ranks_with_the_default(tmp_path):
    """A preloaded module may set it in the guardian, and a function in a rank."""
    (tmp_path / "careless.py").write_text(
        "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
    )
    source = f"""{START}
sys.path.insert(0, {str(tmp_path)!r})
launcher = LocalLauncher("forkserver", preload=["careless"])
rng = random.Random(7)
with RankedExecutor(3, caller_rank=None, output="caller", launcher=launcher) as executor:
    futures = [executor.submit(die_within, rng.random() * 0.02) for _ in range(20)]
    for future in futures[::2]:
        future.cancel()
    errors = {{type(f.exception()) for f in futures[1::2]}}
    guardian = executor.submit(os.getppid).result()
    print(errors <= {{RankDied, type(None)}}, executor.submit(os.getppid).result() == guardian)
"""
    assert run_script(tmp_path, source) == "True True\n"


@pytest.mark.parametrize("whose", ["the caller's", "a rank's"])
def test_a_closed_stdout(tmp_path, whose):
    """What is printed into a closed pipe ends the caller, as `program | head` does it."""
    source = f"""{START}
def speak():
    if os.environ["RANK"] == {"0" if whose == "the caller's" else "1"!r}:
        for _ in range(100_000):
            print("x" * 100)

with RankedExecutor(2) as executor:
    executor.submit(speak)
"""
    (tmp_path / "script.py").write_text(source)
    with subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stdout=-1) as process:
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == -signal.SIGPIPE


# --- lines ---


@pytest.fixture
def pair():
    """Two ends of a line."""
    lines = [Line(own.detach()) for own in socket.socketpair()]
    yield lines
    for line in lines:
        line.close()


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 3 << 20])
def test_messages(pair, size):
    """They come whole, whatever their size."""
    ours, theirs = pair
    thread = threading.Thread(target=lambda: [ours.send(b"x" * size) for _ in range(3)])
    thread.start()
    assert [theirs.receive() for _ in range(3)] == [(b"x" * size, [])] * 3
    thread.join()
    assert not theirs.poll()
    ours.close()
    assert theirs.poll()
    with pytest.raises(EOFError):
        theirs.receive()


def test_files_beside_messages(pair, tmp_path):
    """Files arrive with their message, open, and not for programs that are started."""
    ours, theirs = pair
    with open(tmp_path / "file", "w+b") as file:
        for count in (1, 5):
            ours.send(b"with files", [file.fileno()] * count)
    for count in (1, 5):
        data, files = theirs.receive()
        assert (data, len(files)) == (b"with files", count)
        for number in files:
            assert not os.get_inheritable(number)
            os.write(number, b"x")
            os.close(number)
    assert (tmp_path / "file").read_bytes() == b"x" * 6


def test_the_users_default_timeout():
    """Lines wait, whatever socket.setdefaulttimeout says."""
    socket.setdefaulttimeout(0.01)
    try:
        ours, theirs = (Line(own.detach()) for own in socket.socketpair())
    finally:
        socket.setdefaulttimeout(None)
    timer = threading.Timer(0.1, ours.send, (b"late",))
    timer.start()
    assert theirs.receive() == (b"late", [])
    timer.join()
    ours.close()
    theirs.close()
