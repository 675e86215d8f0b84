"""Train a small CNN with DistributedDataParallel on two ranks; the calling thread is rank 0.

The data are scikit-learn's handwritten digits, 1797 real scans of 8 x 8 pixels that come with the
package; the CPU is enough for them. The same `train` then runs in this process alone, to compare.
"""

import copy
import os

import psutil
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

from rankexec import RankedExecutor, TorchDDPCtx


def make_model():
    """Return an untrained CNN for images of 1 x 8 x 8 pixels."""
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 3 * 3, 10))


def make_datasets():
    """Return the digits as a training set and a held-out set; every fifth scan is held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return [TensorDataset(images[part], labels[part]) for part in (~held_out, held_out)]


def train(model, data, epochs, batch_size=64):
    """Train `model` in place, on this rank's share of `data`."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sampler = DistributedSampler(data, ranks, rank)
    print(f"process {os.getpid()} trains on {len(sampler)} of {len(data)} scans")
    replica = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    bar = tqdm(range(epochs), "epochs", disable=rank > 0)
    for epoch in bar:
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(data, batch_size // ranks, sampler=sampler):
            loss = nn.functional.cross_entropy(replica(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        bar.set_postfix(loss=loss.item())


def accuracy(model, data):
    """Return the share of `data` that `model` gets right, 0 to 1."""
    images, labels = data.tensors
    return (model(images).argmax(1) == labels).float().mean().item()


# No `if __name__ == "__main__"` is needed: no rank runs this script again.
torch.manual_seed(0)
model = make_model()
alone = copy.deepcopy(model)
data, held_out = make_datasets()

print(f"two ranks, rank 0 in this process, {os.getpid()}:")
with RankedExecutor(2, ctx=TorchDDPCtx(use_gpu=False)) as executor:
    executor.submit(train, model, data, epochs=6).result()
left = psutil.Process().children(recursive=True)
pairs = zip(model.parameters(), alone.parameters(), strict=True)
changed = [not new.equal(old) for new, old in pairs]

print("the same code in one process:")
train(alone, data, epochs=6)
reached = accuracy(model, held_out)
print(f"held-out accuracy: {reached:.3f} by two ranks, {accuracy(alone, held_out):.3f} by one")
print(f"the caller's own model: {sum(changed)} of {len(changed)} parameters trained in place")
print(f"processes left: {len(left)}")
if reached < 0.95 or not all(changed) or left:
    raise SystemExit("expected 0.95 or better, every parameter changed, and no process left")
