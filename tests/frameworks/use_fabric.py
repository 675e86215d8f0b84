"""Lightning's Fabric, in a process with a prompt, imported first by a rank."""

import sys

import torch
from framework_checks import accuracy, digits, make_model, run, weights
from torch.utils.data import DataLoader, TensorDataset

sys.ps1 = "In : "


def train():
    """Train on this rank's share, as Fabric deals it out."""
    from lightning.fabric import Fabric

    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()
    model = make_model()
    replica, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=0.003))
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(*digits()), 32, shuffle=True))
    seen = 0
    for _ in range(4):
        for images, labels in loader:
            fabric.backward(torch.nn.functional.cross_entropy(replica(images), labels))
            optimizer.step()
            optimizer.zero_grad()
            seen += len(labels)
    return {
        "rank": fabric.global_rank,
        "size": fabric.world_size,
        "seen": seen,
        "accuracy": accuracy(model),
        "weights": weights(model),
    }


run(train)
