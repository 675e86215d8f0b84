"""The store of a group: it listens on the loopback, at an address that the hosts file names."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psutil
import pytest
from faulty_ranks import all_reduce

from rankexec import RankedExecutor, TorchDDPCtx, _torch

dist = pytest.importorskip("torch.distributed")


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
    found = psutil.Process().net_connections(kind="tcp")
    return {tuple(c.laddr) for c in found if c.status == psutil.CONN_LISTEN}


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
