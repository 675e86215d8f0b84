"""A rendezvous that is broken off: nobody stays in it to wait for a peer that never connects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import faulty_ranks
import pytest
from faulty_ranks import all_reduce, throw
from test_faults_torch import check_usable, no_group_left  # noqa: F401  # one is a fixture
from test_session import main_as_before, open_session, pids  # noqa: F401  # fixtures

from rankexec import GangTimeout, RankDied, RankedExecutor, TorchDDPCtx
from rankexec._gang import peers
from rankexec._gang.peers import hang_up
from rankexec._gang.sockets import InetSocket, cut, inet_sockets

pytest.importorskip("torch")

PROGRAM = Path(__file__).with_name("break_rendezvous.py")
SILENT_SECONDS = 60.0
GANGS = 3
"""How many meet a peer that cannot connect: in half of them, by chance, it would have to."""


@pytest.mark.parametrize(
    "options",
    [
        "kill int timeout --gangs 90 --ranks 3",
        "kill int timeout --gangs 60 --session --groups",
    ],
)
def test_at_random_moments(options):
    """It is over soon. The program says more, and can be run with more gangs and other seeds."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options.split(), "--seed", "11", "--late", "10"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "another thread"])
def test_a_peer_that_never_connects(tmp_path, in_thread):
    """Rank 1 stops when it can be found; rank 0 connects to it, or waits for it: by their ports."""
    errors = []

    def submit_often() -> None:
        for number in range(GANGS):
            ctx = partial(faulty_ranks.StopsInRendezvous, str(tmp_path / str(number)))
            began = time.monotonic()
            errors.append(executor.options(ctx=ctx, timeout=2).submit(int).exception())
            assert time.monotonic() - began < 20

    with RankedExecutor(2, ctx=TorchDDPCtx) as executor:
        executor.submit(all_reduce).result()  # torch is imported
        thread = threading.Thread(target=submit_often)
        if in_thread:
            thread.start()
            thread.join()
        else:
            submit_often()
        assert [type(error) for error in errors] == [GangTimeout] * GANGS
        assert len(os.listdir(tmp_path)) == GANGS  # rank 1 has stopped each time
        check_usable(executor)


def test_a_peer_that_dies_before_a_lazy_connection(monkeypatch):
    """With TORCH_GLOO_LAZY_INIT ranks connect when they first need it; it only moves the place."""
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "1")
    with RankedExecutor(2, ctx=TorchDDPCtx(), timeout=60) as executor:
        for _ in range(GANGS):
            call = partial(faulty_ranks.one_does, 1, partial(os._exit, 7), all_reduce)
            assert type(executor.submit(call).exception()) is RankDied


@pytest.mark.parametrize("rank", [0, 1])
def test_a_session_broken_off_just_after_it_has_joined(open_session, tmp_path, rank):  # noqa: F811  # the fixture
    """The context was not entered, so it cannot be left; its group does not stay nevertheless."""
    slow = tmp_path / "slow"
    session = open_session(ctx=partial(faulty_ranks.HangsWhenJoined, rank, str(slow)))
    before = pids(session)
    with pytest.raises(ValueError, match="enter anew"):
        session.submit(throw, ValueError("enter anew")).result()
    slow.touch()
    assert type(session.options(timeout=1).submit(all_reduce).exception()) is GangTimeout
    slow.unlink()
    assert session.submit(all_reduce).result() == 2
    assert pids(session) == before


def connected(kind: int) -> tuple[socket.socket, socket.socket]:
    """Return a socket and its peer, which keeps silent."""
    peer, own = socket.socket(socket.AF_INET, kind), socket.socket(socket.AF_INET, kind)
    peer.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        with peer as listener:
            listener.listen()
            own.connect(listener.getsockname())
            peer = listener.accept()[0]
    else:
        own.connect(peer.getsockname())
    own.settimeout(SILENT_SECONDS)
    return own, peer


def seen(own: socket.socket) -> InetSocket:
    """Return what is known of this process's socket."""
    return inet_sockets()[os.fstat(own.fileno()).st_ino]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_cut(kind):
    """Whoever waits for the other side is told that it has gone; a resolver waits over UDP."""
    own, peer = connected(kind)
    with own, peer:
        cut(seen(own))
        try:
            assert own.recv(1) == b""
        except ConnectionRefusedError:
            assert kind == socket.SOCK_DGRAM


def test_cut_a_socket_whose_number_is_anothers_by_now():
    """The other one is spared."""
    own, peer = connected(socket.SOCK_STREAM)
    with peer:
        closed = seen(own)
        own.close()
        other, others_peer = connected(socket.SOCK_STREAM)
        os.dup2(other.fileno(), closed.descriptor)
        try:
            cut(closed)
            others_peer.send(b"x")
            assert other.recv(1) == b"x"
        finally:
            if other.fileno() != closed.descriptor:
                os.close(closed.descriptor)
            other.close()
            others_peer.close()


def test_hang_up():
    """Each number comes over a connection of its own, which then ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hang_up([seen(listener)], 3)
        for number in range(3):
            with listener.accept()[0] as accepted:
                assert accepted.recv(100) == number.to_bytes(8, sys.byteorder)
                assert accepted.recv(100) == b""


def test_hang_up_with_few_descriptors_left(monkeypatch):
    """Gloo would end the process if it had none for a connection."""
    monkeypatch.setattr(peers, "free_descriptors", lambda: 107)
    with socket.create_server(("127.0.0.1", 0)) as older, socket.create_server(("", 0)) as newer:
        hang_up([seen(older), seen(newer)], 5)
        with newer.accept()[0] as accepted:
            assert accepted.recv(8) == bytes(8)
        older.settimeout(0)
        with pytest.raises(BlockingIOError):
            older.accept()


def test_hang_up_on_one_that_takes_no_more():
    """It is not waited for; the next one is called."""
    full, free = (socket.create_server(("127.0.0.1", 0), backlog=number) for number in (0, 100))
    with full, free:
        began = time.monotonic()
        hang_up([seen(full), seen(free)], 50)
        assert time.monotonic() - began < 10
        with free.accept()[0] as accepted:
            assert accepted.recv(8) == bytes(8)
