"""accelerate: with an Accelerator made before the gangs, and gangs of several sizes."""

import torch
from accelerate import Accelerator
from framework_checks import accuracy, digits, make_model, run, weights
from torch.utils.data import DataLoader, TensorDataset

from rankexec import RankedExecutor


def train():
    """Train on this rank's share, as accelerate deals it out."""
    accelerator = Accelerator()
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(*digits()), 32, shuffle=True)
    replica, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    seen = 0
    for _ in range(4):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(replica(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            seen += len(labels)
    return {
        "rank": accelerator.process_index,
        "size": accelerator.num_processes,
        "seen": seen,
        "accuracy": accuracy(model),
        "weights": weights(model),
    }


def count():
    """Ask the Accelerator of a process alone how many there are."""
    return earlier.num_processes


earlier = Accelerator()
for caller_rank in (0, None):
    with RankedExecutor(2, caller_rank=caller_rank) as executor:
        error = executor.submit(count).exception()
    if not isinstance(error, AttributeError) or "reinitialized" not in str(error):
        raise SystemExit(f"a rank has used an Accelerator that knows nothing of ranks: {error!r}")
run(train, "accelerate", sizes=(2, 2, 3))
if (earlier.num_processes, earlier.process_index) != (1, 0):
    raise SystemExit("the Accelerator that was made before the gangs has changed")
