"""torch's shared tensors and those over files: they stay so between the caller and its ranks."""

from __future__ import annotations

import os
import resource
import warnings
from typing import Any

import pytest
from helpers import run_script, with_children_only

from rankexec import NotShippable
from rankexec._gang.call import Call
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import pack_result, unpack

torch = pytest.importorskip("torch")


def add(tensors: Any) -> list[bool]:
    """Write this rank's number to its place; return which are shared."""
    rank = int(os.environ["RANK"])
    if isinstance(tensors, torch.nn.Module):
        tensors = list(tensors.parameters())
    with torch.no_grad():
        for tensor in tensors:
            tensor.view(-1)[rank] += rank + 100
    return [tensor.is_shared() for tensor in tensors]


def test_shared_tensors(make_executor):
    """Tensors, views, parameters, on which the ranks write."""
    whole = torch.zeros(4).share_memory_()
    parameter = torch.nn.Parameter(torch.zeros(2).share_memory_())
    results = make_executor(gather=True).submit(add, [whole[2:], parameter]).result()
    assert results == [[True, True], [True, True]]
    assert whole.tolist() == [0, 0, 100, 101]
    assert parameter.tolist() == [100, 101]


def test_a_module_after_share_memory(make_executor):
    """Hogwild, again and again in a session. More descriptors than one message takes."""
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(150)]).share_memory()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with make_executor(output="caller").session() as session:
        for _ in range(2):
            session.submit(add, model).result()
    for parameter in model.parameters():
        assert parameter.view(-1)[:2].tolist() == [200, 202]


def test_the_other_strategy(tmp_path):
    """By names: ranks that end leave nothing behind, however they end."""
    script = """
import os, torch
from rankexec import RankedExecutor
from test_storages import add
if __name__ == "__main__":
    by_descriptor = torch.zeros(2).share_memory_()
    torch.multiprocessing.set_sharing_strategy("file_system")
    by_name = torch.zeros(2).share_memory_()
    for caller_rank in (0, None):
        with RankedExecutor(2, caller_rank=caller_rank) as executor:
            executor.submit(add, [by_name, by_descriptor]).result()
    print(by_name.tolist(), by_descriptor.tolist())
    del by_name
    print([name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{os.getpid()}_")])
"""
    # With torch 2.8 a process that ends warns of storages that torch holds by weak references.
    env = {"PYTHONWARNINGS": "ignore:Deallocating UntypedStorage:UserWarning"}
    assert run_script(tmp_path, script, env=env) == "[200.0, 202.0] [200.0, 202.0]\n[]\n"


@pytest.fixture
def path(tmp_path):
    """A file of 40 bytes."""
    (tmp_path / "data").write_bytes(bytes(40))
    return str(tmp_path / "data")


def test_of_a_file(make_executor, path):
    """It is mapped anew; in results too."""
    own = torch.from_file(path, shared=True, size=10)

    def echo(tensor: Any) -> Any:
        tensor[int(os.environ["RANK"])] = 7
        return tensor

    results = make_executor(gather=True).submit(echo, own[2:]).result()
    assert own.tolist() == [0, 0, 7, 7, 0, 0, 0, 0, 0, 0]
    own[2] = 8
    assert [tensor[0].item() for tensor in results] == [8, 8]
    assert {tensor.untyped_storage().filename for tensor in results} == {path}


def test_of_a_file_privately(path):
    """Is private: a copy of what it is here."""
    own = torch.from_file(path, shared=False, size=10)
    own[0] = 3
    other = unpack(pack_call(Call(print, (own,), {}))).args[0]
    other[1] = 4
    assert (other[0], own[1]) == (3, 0)


@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_of_a_file_that_is_gone(path, how):
    """It is named. torch would make it anew, or fill it up."""
    own = torch.from_file(path, shared=True, size=10)
    packed = pack_call(Call(print, (own,), {}))
    if how == "deleted":
        os.unlink(path)
    else:
        os.truncate(path, 8)
    with pytest.raises(NotShippable, match=r"its file .*data' (cannot be found|was truncated)"):
        pack_call(Call(print, (own,), {}))
    with pytest.raises(OSError, match="data"):
        unpack(packed)


def test_below_numpy(path):
    """`torch.from_numpy` of a memmap, and the array of a shared tensor."""
    numpy = pytest.importorskip("numpy")
    mapped = numpy.memmap(path, "f4", "r+", offset=12)
    shared = torch.zeros(2).share_memory_()
    packed = pack_call(Call(print, (torch.from_numpy(mapped)[1:], shared.numpy()), {}))
    from test_arrays import unpack_call

    tensor, array = unpack_call(packed).args
    tensor[0] = array[0] = 9
    assert (mapped[1], shared[0]) == (9, 9)


def test_below_numpy_read_only(path):
    """Nothing warns once more."""
    numpy = pytest.importorskip("numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        own = torch.from_numpy(numpy.memmap(path, "f4", "r"))
    assert torch.equal(unpack(pack_call(Call(print, (own,), {}))).args[0], own)


def test_too_many_open_files():
    """It is said, and what to do; nothing is copied instead."""
    tensors = [torch.zeros(2).share_memory_() for _ in range(20)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (0, 1, 10):
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, limits[1]))
        try:
            with pytest.raises(NotShippable, match=r"open files.*ulimit.*file_system"):
                pack_call(Call(print, (tensors,), {}))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@with_children_only
def test_results_are_copies(make_executor):
    """What a rank returns is what it was at that moment."""
    own = torch.zeros(2).share_memory_()
    result = make_executor().submit(lambda tensor: tensor, own).result()
    assert not result.is_shared()
    assert own.is_shared()
    assert not unpack(pack_result(own, frozenset())).is_shared()


def test_empty(make_executor):
    """Has nothing to share."""
    own = torch.zeros(0).share_memory_()
    assert make_executor().submit(len, own).result() == 0
