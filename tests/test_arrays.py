"""numpy's arrays over files and shared memory: ranks write to what the caller has."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import shutil
import tempfile
from multiprocessing import shared_memory
from typing import Any

import pytest
from helpers import keep_what_twins_keep, with_children_only, with_the_caller

from rankexec import NotShippable
from rankexec._gang import mappings
from rankexec._gang.call import Call
from rankexec._gang.shipping import pack_call
from rankexec._gang.wire import pack_result, unpack

np = pytest.importorskip("numpy")

SHAPE = (6, 4)


@pytest.fixture(scope="module", autouse=True)
def _kept() -> None:
    keep_what_twins_keep()


@pytest.fixture
def new(tmp_path):
    """Make a memmap with known values over a new file."""

    def make(name: str = "data", **options: Any) -> Any:
        options = {"dtype": "f8", "mode": "w+", "shape": SHAPE, **options}
        made = np.memmap(tmp_path / name, **options)
        made[...] = np.arange(made.size).reshape(made.shape).astype(made.dtype)
        return made

    yield make
    gc.collect()


def there_and_back(value: Any) -> Any:
    """Return what a rank would have."""
    packed = pack_call(Call(print, (value,), {}))
    assert packed.fd is None  # no data
    value = unpack(packed).args[0]
    packed.close()
    return value


VIEWS = {
    "all of it": lambda m: m,
    "rows": lambda m: m[2:5],
    "columns": lambda m: m[:, 1:3],
    "steps backwards": lambda m: m[::-1, ::-2],
    "transposed": lambda m: m.T,
    "one element": lambda m: m[3:4, 2:3].reshape(()),
    "none": lambda m: m[6:],
    "as an array": np.asarray,
    "a view of an array": lambda m: np.asarray(m)[1:, 2],
    "through a memoryview": lambda m: np.frombuffer(memoryview(np.ravel(m, order="A")), "f8")[3:7],
    "as another class": lambda m: m.view(np.recarray),
}


@pytest.mark.parametrize("offset", [0, 8, mmap.ALLOCATIONGRANULARITY, 5000])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(new, view, order, offset):
    """Arrive as they are, and what is written there is here."""
    own = view(new(order=order, offset=offset))
    other = there_and_back(own)
    assert np.array_equal(own, other)
    layout = (type(own), own.shape, own.strides, own.dtype)
    assert (type(other), other.shape, other.strides, other.dtype) == layout
    if own.size:
        other[...] = 7
        assert (own == 7).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
def test_of_no_dimension_and_empty(new, shape):
    """Too."""
    own = new(shape=shape)
    other = there_and_back(own)
    assert (other.shape, other.filename) == (shape, own.filename)
    if other.size:
        other[...] = 5
        assert own == 5


@pytest.mark.parametrize("dtype", ["M8[s]", "S3", "?", "c16", [("a", "i4"), ("b", "f8")]], ids=str)
def test_dtypes(new, tmp_path, dtype):
    """Also those that no buffer has."""
    new(dtype="u1", shape=(200,))
    own = np.memmap(tmp_path / "data", dtype=dtype, mode="r+", shape=(5,))
    for part in (own, own[1:3]):
        other = there_and_back(part)
        assert (other.dtype, other.tobytes()) == (part.dtype, part.tobytes())


def test_what_numpy_knows_of_it(new):
    """Name, offset and mode; one made anew is not made anew once more. What is flushed is so."""
    own = new(offset=8)
    other, part = there_and_back([own, own[2:]])
    for arrived in (other, part):
        assert (arrived.filename, arrived.offset, arrived.mode) == (own.filename, 8, "r+")
        assert arrived._mmap is other._mmap  # one mapping for both
        arrived.flush()
    again = there_and_back(part)  # on its way to a rank's own ranks
    again[...] = 3
    assert (own[2:] == 3).all()


def test_read_only(new, tmp_path):
    """Stays so, by its file or by itself."""
    whole = new()
    read = there_and_back(np.memmap(tmp_path / "data", dtype="f8", mode="r", shape=SHAPE))
    part = whole[1:]
    part.setflags(write=False)
    for other in (read, there_and_back(part)):
        assert not other.flags.writeable


def test_copy_on_write(new, tmp_path):
    """Comes from the file as long as nothing was changed here; then as a copy of what is here."""
    new().flush()
    own = np.memmap(tmp_path / "data", dtype="f8", mode="c", shape=SHAPE)
    other = there_and_back(own)
    assert other.mode == "c"
    other[0, 0] = 9
    assert own[0, 0] == 0
    own[1, 1] = 8
    changed = there_and_back(own[1:])
    assert (changed[0, 1], getattr(changed, "mode", None)) == (8, None)
    changed[0, 0] = 9
    assert own[1, 0] == 4


def test_saved_arrays(tmp_path):
    """`np.load(..., mmap_mode=)`."""
    np.save(tmp_path / "saved.npy", np.arange(12.0).reshape(3, 4))
    own = np.load(tmp_path / "saved.npy", mmap_mode="r+")
    there_and_back(own[1])[0] = 42
    assert own[1, 0] == 42


# --- other memory that is shared ---


def test_a_block_of_shared_memory():
    """By its name, without another owner for it."""
    block = shared_memory.SharedMemory(create=True, size=800)
    own = np.ndarray((10, 10), "f8", buffer=block.buf)
    there_and_back(own[2:, ::-1])[0, 0] = 42
    assert own[2, 9] == 42
    del own
    gc.collect()
    block.close()
    block.unlink()


def test_memory_with_a_descriptor():
    """A RawArray's, and a file's that has no name."""
    raw = multiprocessing.RawArray("d", 10)
    with tempfile.TemporaryFile() as file:
        nameless = np.memmap(file, "f8", "w+", shape=(10,))
    packed = pack_call(Call(print, (np.frombuffer(raw)[5:], nameless), {}))
    call = unpack_call(packed)
    for other in call.args:
        other[0] = 42
    assert (raw[5], nameless[0]) == (42, 42)


def unpack_call(packed: Any) -> Call:
    """Unpack with the descriptors that belong to it."""
    from rankexec._gang import descriptors

    with descriptors.arriving(packed.boxes):
        call: Call = unpack(packed)
    packed.close()
    return call


def test_memory_of_forks():
    """Has no name and no descriptor."""
    own = np.frombuffer(mmap.mmap(-1, 800), "f8")
    with pytest.raises(NotShippable, match=r"only forks of this process.*SharedMemory"):
        pack_call(Call(print, (own,), {}))


def test_private_memory():
    """Is copied, whatever holds it."""
    for own in (np.frombuffer(b"x" * 8), np.frombuffer(bytearray(8)), np.arange(9.0)[::2]):
        assert np.array_equal(there_and_back(own), own)


# --- files that are not what they were ---


def test_deleted(new):
    """The file is named, and nothing is started."""
    own = new()
    os.unlink(own.filename)
    with pytest.raises(
        NotShippable, match=r"argument 0 of print\(\).*data' cannot be found: No su"
    ):
        pack_call(Call(print, (own[1:],), {}))


def test_replaced(new):
    """By another one of that name."""
    own = new()
    os.unlink(own.filename)
    new()
    with pytest.raises(NotShippable, match=r"data' was replaced or deleted since it was mapped"):
        pack_call(Call(print, (own,), {}))


def test_truncated(new):
    """Whoever read past its end would be killed."""
    own = new()
    os.truncate(own.filename, 8)
    with pytest.raises(
        NotShippable, match=r"data' was truncated: it has 8 bytes, and .* needs 192"
    ):
        pack_call(Call(print, (own,), {}))


@pytest.mark.parametrize("how", ["deleted", "replaced", "truncated"])
def test_after_it_was_packed(new, how):
    """The rank says so."""
    own = new()
    packed = pack_call(Call(print, (own,), {}))
    if how == "truncated":
        os.truncate(own.filename, 8)
    else:
        os.rename(own.filename, f"{own.filename}.old")
    if how == "replaced":
        new()
    expected = {"deleted": "No such file.*data", "replaced": "another file", "truncated": "8 bytes"}
    with pytest.raises(OSError, match=expected[how]):
        unpack(packed)


def test_without_the_kernels_list(new, monkeypatch):
    """Files are found by what numpy knows. Of other memory nobody can tell, and it is refused."""
    monkeypatch.setattr(mappings, "_MAPS", "/nowhere")
    own = new()
    there_and_back(own[1:])[0, 0] = 42
    assert own[1, 0] == 42
    other = np.frombuffer(mmap.mmap(-1, 800), "f8")
    with pytest.raises(NotShippable, match=r"no name"):
        pack_call(Call(print, (other,), {}))


# --- results ---


def test_results(new):
    """Go by their file, if that is there; what it was when it was returned, if not."""
    own = new()
    packed = pack_result([own, own[1:]], frozenset())
    whole, part = unpack(packed)
    whole[1, 0] = 42
    assert (own[1, 0], part[0, 0]) == (42, 42)
    os.unlink(own.filename)
    copied = unpack(pack_result(own, frozenset()))
    copied[1, 0] = 1
    assert own[1, 0] == 42


def test_results_in_shared_memory():
    """Are what they were when they were returned."""
    raw = multiprocessing.RawArray("d", 10)
    unpack(pack_result(np.frombuffer(raw), frozenset()))[0] = 42
    assert raw[0] == 0


# --- on ranks ---


class Dataset:
    """Has its data in a file."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def fill(self) -> Any:
        """Write this rank's part."""
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.data[rank::size] = rank + 1
        return self.data[rank:]


@pytest.mark.parametrize("length", [8, 1 << 20])
def test_every_rank_writes(make_executor, new, length):
    """And what they return is the caller's file, too."""
    own = new(shape=(length,))
    results = make_executor(gather=True).submit(Dataset(own).fill).result()
    assert sorted(set(own)) == [1, 2]
    own[1] = 5
    assert [results[0][1], results[1][0]] == [5, 5]
    assert results[1].filename == own.filename


def test_as_a_global_of_a_session(make_executor, new, main):
    """Its ranks keep it mapped."""
    main["data"] = new(shape=(2,))
    code = "import os\ndef add():\n    data[int(os.environ['RANK'])] += 10"
    exec(code, main)
    with make_executor().session() as session:
        for _ in range(2):
            session.submit(main["add"]).result()
    assert main.pop("data").tolist() == [20, 21]


@with_the_caller
def test_a_deleted_file_starts_nothing(make_executor, new):
    """The future has the reason."""
    own = new()
    os.unlink(own.filename)
    error = make_executor().submit(Dataset(own).fill).exception()
    assert isinstance(error, NotShippable)
    assert own.filename.name in str(error)


@with_children_only
def test_a_folder_that_is_gone(make_executor):
    """What a rank returns of it is a copy."""

    def make() -> Any:
        folder = tempfile.mkdtemp()
        made = np.memmap(f"{folder}/data", "f8", "w+", shape=(3,))
        made[:] = 5
        shutil.rmtree(folder)
        return made

    assert make_executor(1).submit(make).result().tolist() == [5, 5, 5]
