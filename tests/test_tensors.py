"""Tensors on the wire: every kind, as they were; large ones mapped, shared ones shared."""

from __future__ import annotations

import os
import warnings
from functools import partial

import pytest
from test_wire import round_trip

from rankexec import TorchDDPCtx
from rankexec._gang import tensors
from rankexec._gang.wire import BUFFER_LIMIT, pack, unpack

torch = pytest.importorskip("torch")

DTYPES = sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)
PLAIN = [dtype for dtype in DTYPES if not str(dtype).startswith("torch.q")]
"""The quantized ones are deprecated, and torch warns."""


def same(one, other):
    """Return whether two tensors agree in all that can be compared without arithmetic."""
    attributes = ("dtype", "shape", "requires_grad", "device", "layout")
    if any(getattr(one, name) != getattr(other, name) for name in attributes):
        return False
    return torch.equal(raw(one), raw(other))


def raw(tensor):
    """Return a tensor's bytes."""
    storage = tensor.detach().contiguous().untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@pytest.mark.filterwarnings("ignore:(ComplexHalf|BComplex32) support:UserWarning")  # torch's, once
@pytest.mark.parametrize("size", [0, 3, BUFFER_LIMIT], ids=["empty", "small", "large"])
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_dtype(dtype, size):
    """Bytes go, so the dtype does not matter: bfloat16, float8, complex, the newest integers."""
    width = torch.empty(0, dtype=dtype).element_size()
    source = torch.randint(0, 256, (size * width,), dtype=torch.uint8)
    tensor = torch.empty(size, dtype=dtype)
    if size:
        tensor.untyped_storage().copy_(source.untyped_storage())
    assert same(round_trip(tensor), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::2],
        torch.arange(12.0)[5:],
        torch.ones(1).expand(4, 5),
        torch.tensor(3.5),
        torch.ones(3, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.empty(2, 3, device="meta"),
    ],
    ids=[
        "transposed", "strided", "offset", "expanded", "scalar", "with gradient", "parameter",
        "sparse", "conjugated", "meta",
    ],
)  # fmt: skip
def test_every_kind(tensor):
    """Whatever its layout."""
    arrived = round_trip(tensor)
    assert type(arrived) is type(tensor)
    assert (arrived.dtype, arrived.shape, arrived.layout) == (
        tensor.dtype, tensor.shape, tensor.layout
    )  # fmt: skip
    assert arrived.requires_grad == tensor.requires_grad
    if tensor.layout is torch.strided:
        assert arrived.stride() == tensor.stride()
    if not tensor.is_meta:
        assert torch.equal(arrived.to_dense(), tensor.to_dense())


@pytest.mark.parametrize("size", [10, BUFFER_LIMIT])
def test_what_is_shared_stays_shared(size):
    """Views of one storage are views of one storage, and tied parameters one."""
    base = torch.zeros(size)
    first, view, again = round_trip((base, base[5:].view(torch.int32), base))
    first[5] = 1.0
    assert view[0] == torch.ones(1).view(torch.int32)[0]
    assert again is first
    tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    arrived = round_trip(tied)
    assert arrived["a"].weight is arrived["b"].weight


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_gradients(kind):
    """They go along, as in a copy within the process; what shares their memory still does."""
    tensor = kind(torch.ones(3))
    (tensor * 2).sum().backward()
    arrived, gradient = round_trip((tensor, tensor.grad))
    assert arrived.grad is gradient
    assert gradient.tolist() == [2.0, 2.0, 2.0]
    untouched = round_trip(kind(torch.ones(3)))
    assert untouched.grad is None


def times_ten(parameter):
    """Be called when a gradient has come."""
    parameter.grad.mul_(10)


def test_hooks_of_tensors():
    """They clip there as here; what removes them does so; they may refer to the tensor."""
    parameter = torch.nn.Parameter(torch.ones(2))
    own = parameter
    handles = [
        parameter.register_hook(lambda gradient: gradient.clamp(max=own.numel() / 8)),
        parameter.register_post_accumulate_grad_hook(times_ten),
    ]
    arrived, there = round_trip((parameter, handles))
    for expected in (2.5, 0.25, 1.0):
        arrived.grad = None
        arrived.sum().backward()
        assert arrived.grad.tolist() == [expected] * 2
        if there:
            there.pop().remove()
    assert parameter.grad is None


def test_hooks_that_are_to_stay():
    """Torch's mark for a hook that is for this process alone."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.register_hook(torch.utils.hooks.unserializable_hook(lambda gradient: gradient * 3))
    parameter.register_hook(lambda gradient: gradient * 5)
    arrived = round_trip(parameter)
    arrived.sum().backward()
    assert arrived.grad.tolist() == [5.0, 5.0]


def test_large_storages_are_out_of_the_stream_and_go_once():
    """One storage, reached three times, is one section of the file beside the stream."""
    base = torch.zeros(2 * BUFFER_LIMIT, dtype=torch.uint8)
    packed = pack([base, base[1:], {"again": base}])
    (_, stream), *buffers = packed.sections
    assert [size for _, size in buffers] == [2 * BUFFER_LIMIT]
    assert stream < BUFFER_LIMIT // 100
    packed.close()


def test_large_storages_are_mapped_privately():
    """Each who unpacks has pages of its own, writable and zero-copy; the sender's stay."""
    base = torch.zeros(BUFFER_LIMIT)
    packed = pack(base)
    first, second = unpack(packed), unpack(packed)
    packed.close()
    first.fill_(1)
    second[0] = 2
    assert (base.sum(), first.sum(), second.sum()) == (0, BUFFER_LIMIT, 2)


def test_what_arrives_can_be_used_like_any_other():
    """Shared with processes, saved, resized: also a mapped one, which torch did not allocate."""
    for size in (10, BUFFER_LIMIT):
        arrived = round_trip(torch.ones(size))
        assert arrived.data_ptr() % 16 == 0
        assert arrived.clone().resize_(2 * size).shape == (2 * size,)
        assert arrived.share_memory_().is_shared()
        assert arrived.sum() == size


def test_modules_and_optimizers():
    """A model and its optimizer, shipped together, still belong together."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 4))[0].sum().backward()
    optimizer.step()
    theirs, its_optimizer = round_trip((model, optimizer))
    for one, other in zip(model.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert same(one, other)
    theirs(torch.rand(2, 4))[0].sum().backward()
    before = theirs[0].weight.clone()
    its_optimizer.step()
    assert not torch.equal(before, theirs[0].weight)


def scaled(tensor, factor):
    """Change an argument in place, and return it."""
    tensor.mul_(factor * (int(os.environ["RANK"]) + 1))
    return tensor


def test_through_a_gang(make_executor):
    """What one rank writes no other sees; the caller's rank has the caller's own tensor."""
    executor = make_executor(gather=True, ctx=TorchDDPCtx())
    mine = torch.ones(BUFFER_LIMIT, dtype=torch.bfloat16)
    first, second = executor.submit(scaled, mine, 3).result()
    assert (first[0], second[0]) == (3, 6)
    assert (first is mine) == (executor._settings.caller_rank == 0)
    assert mine[0] == (3 if first is mine else 1)


def sum_and_mapping(tensor):
    """Return a tensor's sum, and the line of the memory map that holds its first byte."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return tensor.sum().item(), line
    raise LookupError("no mapping holds it")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")
def test_arguments_are_mapped_in_every_child(make_executor):
    """A child has a large tensor where the file is mapped, and nothing is copied."""
    executor = make_executor(gather=True)
    tensor = torch.ones(16 * BUFFER_LIMIT, dtype=torch.uint8)
    for rank, (total, mapping) in enumerate(executor.submit(sum_and_mapping, tensor).result()):
        assert total == tensor.numel()
        is_child = rank != executor._settings.caller_rank
        assert ("/memfd:rankexec" in mapping) == is_child


@pytest.mark.parametrize(
    ("gpus", "rank", "expected"),
    [(2, (1, 2), "cuda:1"), (1, (1, 2), "cpu"), (0, (0, 1), "cpu")],
)
def test_where_a_tensor_of_a_gpu_arrives(monkeypatch, gpus, rank, expected):
    """On the rank's own GPU if every rank has one; there are none here, so only where is asked."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(tensors, "_rank_here", rank)
    assert tensors.device_here(torch, "cuda") == torch.device(expected)


def test_a_caller_gets_no_cuda_context():
    """Unless it has one: a result of a GPU arrives on the CPU."""
    assert not torch.cuda.is_initialized()
    assert tensors.device_here(torch, "cuda") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tensors_of_a_gpu(make_executor):
    """They arrive on the GPU of each rank, and come back."""
    executor = make_executor(1, gather=True)
    tensor = torch.ones(BUFFER_LIMIT, device="cuda")
    (arrived,) = executor.submit(partial(scaled, tensor, 2)).result()
    assert arrived.device.type == "cuda"
    assert arrived[0] == 2


# --- modules that torch refuses to pickle ---


class Symmetric(torch.nn.Module):
    """A parametrization."""

    def forward(self, x):
        """Return a symmetric matrix."""
        return x.triu() + x.triu(1).T


def parametrized():
    """Return a model with parametrizations, two of them on one tensor."""
    weight_norm, spectral_norm, linear = (
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.Linear(3, 3),
    )
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", Symmetric())
    linear.note = ["kept"]
    return torch.nn.Sequential(spectral_norm(linear), weight_norm(torch.nn.Linear(3, 3)))


def test_parametrized_modules():
    """They are parametrized in the same way, and the state that they have is what they had."""
    model = parametrized()
    tied = model[0].parametrizations.weight.original
    arrived, parameter, again = round_trip((model, tied, model))
    assert again is arrived
    assert arrived[0].parametrizations.weight.original is parameter
    assert arrived[0].note == ["kept"]
    assert type(arrived[0]).__name__ == type(model[0]).__name__
    assert isinstance(arrived[0], torch.nn.Linear)
    model.eval(), arrived.eval()
    assert torch.equal(arrived(torch.ones(3)), model(torch.ones(3)))
    before = arrived[1].weight
    with torch.no_grad():
        arrived[1].parametrizations.weight.original0 += 1
    assert not torch.equal(arrived[1].weight, before)
    torch.nn.utils.parametrize.remove_parametrizations(arrived[1], "weight")
    assert type(arrived[1]) is torch.nn.Linear


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # from torch 2.14 on
def test_scripted_and_traced_modules():
    """By torch's own format, by themselves and in other modules; nothing is said of that."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    model[0].bias.requires_grad_(False)
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, torch.ones(3))
    function = torch.jit.script(doubled)
    outer = torch.nn.ModuleDict({"inner": scripted.eval()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *both, outer, function = round_trip((scripted, traced, outer, function))
    for arrived in (*both, outer["inner"]):
        assert isinstance(arrived, torch.jit.ScriptModule)
        assert torch.equal(arrived(torch.ones(3)), model(torch.ones(3)))
        assert [p.requires_grad for p in arrived.parameters()] == [True, False]
    assert outer["inner"] is both[0]
    assert not both[0].training
    assert function(torch.ones(1)) == 2


def doubled(x):
    """Be scripted."""
    return x * 2
