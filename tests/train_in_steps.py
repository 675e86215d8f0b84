# ruff: noqa: D102, D103, PLW0603  # steps as cells of a notebook, which set its variables
"""A training in steps, as cells of a notebook: by torchrun, or in a session, to be compared.

    torchrun --nproc-per-node 2 train_in_steps.py    every step on every rank
    python train_in_steps.py 0                       some steps here, the others on ranks

Prints what the last step comes to.
"""

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rankexec import RankedExecutor, TorchDDPCtx


class Net(torch.nn.Module):
    """Two layers with the same weights, and one behind them."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.tied = torch.nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.last = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.tied(torch.tanh(self.first(x)))))


def make():
    global models, averaged, seen
    torch.manual_seed(5)
    models = [Net()]
    averaged = copy.deepcopy(models[0])
    seen = {"losses": []}


def wrap():
    global ddp
    ddp = DistributedDataParallel(models[0])


def bind_sgd():
    global optimizer, losses
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1, momentum=0.9)
    losses = seen["losses"]


def train():
    for step in range(3):
        torch.manual_seed(10 * step + dist.get_rank())
        x = torch.rand(8, 4)
        loss = (ddp(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


def bind_scheduler():
    global scheduler
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=4)


def train_scheduled():
    train()
    scheduler.step()
    with torch.no_grad():
        for mean, new in zip(averaged.parameters(), models[0].parameters(), strict=True):
            mean.lerp_(new, 0.25)


def bind_adam():
    global optimizer, parameters
    parameters = list(models[0].parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)


def result():
    found = [p.double().sum().item() for p in [*parameters, *averaged.parameters()]]
    rates = [group["lr"] for group in optimizer.param_groups]
    return [*found, *rates, scheduler.get_last_lr(), seen["losses"]]


STEPS = [
    (make, False), (wrap, True), (bind_sgd, False), (train, True), (bind_scheduler, False),
    (train_scheduled, True), (train_scheduled, True), (bind_adam, False), (train, True),
]  # fmt: skip

if len(sys.argv) == 1:
    dist.init_process_group("gloo")
    for step, _ in STEPS:
        step()
    found = [None, None]
    dist.all_gather_object(found, result())
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
else:
    caller_rank = json.loads(sys.argv[1])
    context = TorchDDPCtx(use_gpu=False)
    with (
        RankedExecutor(2, ctx=context, caller_rank=caller_rank, gather=True) as executor,
        executor.session() as session,
    ):
        for step, on_ranks in STEPS:
            if on_ranks:
                session.submit(step).result()
            else:
                step()
        print(json.dumps(session.submit(result).result()))
