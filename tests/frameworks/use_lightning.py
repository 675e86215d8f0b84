"""Lightning's Trainer, in a process with a prompt, as IPython's has one."""

import importlib
import os
import sys

import torch
from framework_checks import accuracy, digits, make_model, run, weights
from torch.utils.data import DataLoader, TensorDataset

from rankexec import RankedExecutor, TorchDDPCtx

sys.ps1 = "In : "
lightning = importlib.import_module("lightning")  # now that there is a prompt


class Classifier(lightning.LightningModule):
    """The model, its loss and its optimizer."""

    def __init__(self):
        super().__init__()
        self.layers = make_model()
        self.seen = 0

    def training_step(self, batch, _):
        """Return the loss of a batch."""
        images, labels = batch
        self.seen += len(labels)
        return torch.nn.functional.cross_entropy(self.layers(images), labels)

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.003)


def train():
    """Train on this rank's share, as the Trainer deals it out."""
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, DataLoader(TensorDataset(*digits()), 32, shuffle=True))
    return {
        "rank": trainer.global_rank,
        "size": trainer.world_size,
        "environment": os.environ.get("WORLD_SIZE"),
        "seen": model.seen,
        "accuracy": accuracy(model.layers),
        "weights": weights(model),
    }


def train_with_three():
    """Begin to train with another number of ranks than there are."""
    trainer = lightning.Trainer(accelerator="cpu", devices=3, strategy="ddp", logger=False)
    trainer.fit(Classifier(), DataLoader(TensorDataset(*digits())))


with RankedExecutor(2, ctx=TorchDDPCtx(use_gpu=False)) as executor:
    error = executor.submit(train_with_three).exception()
if not isinstance(error, ValueError) or "devices=3" not in str(error):
    raise SystemExit(f"Lightning has not seen that there are two ranks: {error!r}")
run(train, "lightning")
