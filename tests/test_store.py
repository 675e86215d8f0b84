"""The store of a group: it listens on the loopback, at an address that the hosts file names."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import psutil
import pytest
from faulty_ranks import all_reduce

from rankexec import RankedExecutor, TorchDDPCtx, _torch

dist = pytest.importorskip("torch.distributed")


class ConnectsLate(TorchDDPCtx):
    """Its rank 1 is slow to see that it is connected."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __enter__(self) -> TorchDDPCtx:
        join = dist.init_process_group

        def join_late(*args, **kwargs) -> None:
            join(*args, **kwargs)
            if os.environ["RANK"] == "1":
                time.sleep(0.5)
                open(self.path, "w").close()

        dist.init_process_group = join_late
        try:
            return super().__enter__()
        finally:
            dist.init_process_group = join


def test_no_rank_is_gone_before_all_have_joined(tmp_path) -> None:
    """A function that ends at once does not make another rank's connections fail."""
    path = str(tmp_path / "joined")
    with RankedExecutor(2, ctx=ConnectsLate(path), gather=True) as executor:
        assert executor.submit(os.path.exists, path).result() == [True, True]


@pytest.fixture
def ipv6() -> None:
    """Skip where the host has no IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no ::1 on this host")


@pytest.fixture(
    params=["127.0.0.1 localhost\n::1 localhost\n", "127.0.0.1 localhost\n#::1 x\n", None]
)
def named(request, monkeypatch, tmp_path) -> Iterator[bool]:
    """Put a hosts file (or none) in the place of this host's; whether it names ::1."""
    path = tmp_path / "hosts"
    if request.param is not None:
        path.write_text(request.param)
    monkeypatch.setattr(_torch, "_HOSTS", str(path))
    return "\n::1" in (request.param or "")


def listening() -> set[tuple[str, int]]:
    """Return where this process listens."""
    # A process's own method has another name before psutil 6.
    own = [c for c in psutil.net_connections(kind="tcp") if c.pid == os.getpid()]
    return {tuple(c.laddr) for c in own if c.status == psutil.CONN_LISTEN}


def test_address(ipv6, named) -> None:
    """An address that the hosts file has not makes every rank ask a name server."""
    before = listening()
    with _torch.loopback_store(None) as address:
        host, _, port = address.rpartition(":")
        assert host == ("::1" if named else "127.0.0.1")
        assert listening() - before == {(host, int(port))}
        dist.TCPStore(host, int(port), is_master=False).set("key", "value")
    assert listening() == before


def test_host_without_ipv6(monkeypatch, tmp_path) -> None:
    """Its hosts file may name ::1 nevertheless."""
    path = tmp_path / "hosts"
    path.write_text("::1 localhost\n")
    monkeypatch.setattr(_torch, "_HOSTS", str(path))
    made = socket.socket

    def refuse(family: int = socket.AF_INET, *args, **kwargs) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError("Address family not supported by protocol")
        return made(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", refuse)
    with _torch.loopback_store(None) as address:
        assert address.startswith("127.0.0.1:")


def test_gang(ipv6, named) -> None:
    """Both kinds of address serve a gang."""
    with RankedExecutor(2, ctx=TorchDDPCtx()) as executor:
        assert executor.submit(all_reduce).result() == 2
