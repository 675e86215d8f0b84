"""The end of a rank that has used torch."""

from __future__ import annotations

import os

import pytest

from rankexec import RankedExecutor, TorchDDPCtx

torch = pytest.importorskip("torch")


def save_at_once(folder: str) -> None:
    """Make a checkpoint."""
    import torch.distributed.checkpoint as dcp

    dcp.save({"a": torch.ones(1)}, checkpoint_id=folder)


def save(folder: str) -> None:
    """Begin an asynchronous checkpoint, and do not wait for it."""
    import torch.distributed.checkpoint as dcp

    dcp.async_save({"a": torch.ones(1 << 20)}, checkpoint_id=folder)


# The checkpoints of torch 2.8 use what torch has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _torchs_own(tmp_path_factory):
    """The first checkpoint of a process leaves descriptors of torch's own."""
    with RankedExecutor(2, ctx=TorchDDPCtx()) as executor:
        executor.submit(save_at_once, str(tmp_path_factory.mktemp("first"))).result()


@pytest.mark.parametrize("session", [False, True], ids=["gang", "session"])
def test_asynchronous_checkpoint(make_executor, tmp_path, session):
    """It is complete, though it is made of collectives after the function has returned."""
    executor = make_executor(ctx=TorchDDPCtx())
    where = executor.session() if session else executor
    where.submit(save, str(tmp_path)).result()
    if session:
        where.close()
    executor.shutdown()
    assert os.path.exists(tmp_path / ".metadata")
