"""A page of JupyterLab in Chromium: train on two ranks, press stop, carry on; nothing is left.

`drive_page` is what uses the page. With `--screenshots=../docs/images` the pictures of the docs are
taken anew, else they go to a temporary directory.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import textwrap
from pathlib import Path

import pytest
from helpers import run_python

HERE = Path(__file__).resolve().parent
NEEDS = ("jupyterlab", "playwright", "PIL", "ipywidgets", "tqdm", "sklearn", "torch")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = [name for name in NEEDS if importlib.util.find_spec(name) is None]
if not any(map(shutil.which, BROWSERS)):
    MISSING.append("Chromium")

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
SOON = 10.0
"""Seconds: a bound for a loaded machine; what is stopped would take ten minutes."""
CELLS = {
    "define": """
        import torch, torch.distributed as dist
        from sklearn.datasets import load_digits
        from torch import nn
        from tqdm.notebook import tqdm
        from rankexec import RankedExecutor, TorchDDPCtx

        digits = load_digits()
        images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target)
        held_out = torch.arange(len(labels)) % 5 == 0

        def train(model, epochs):
            rank, ranks = dist.get_rank(), dist.get_world_size()
            mine = torch.nonzero(~held_out)[rank::ranks, 0]
            replica = nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
            for epoch in (bar := tqdm(range(epochs), "epochs", disable=rank > 0)):
                for batch in mine[torch.randperm(len(mine))].split(64):
                    loss = nn.functional.cross_entropy(replica(images[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                bar.set_postfix(loss=loss.item())
            print(f"rank {rank} has trained on {len(mine)} of {sum(~held_out)} scans")
        """,
    "train": """
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        executor = RankedExecutor(2, ctx=TorchDDPCtx(use_gpu=False))
        executor.submit(train, model, epochs=20).result()

        right = model(images[held_out]).argmax(1) == labels[held_out]
        print(f"this notebook's model, held-out accuracy: {right.float().mean():.3f}")
        """,
    "stop": """
        import time

        def train_for_long(model):
            train(model, epochs=2)
            if dist.get_rank() == 1:
                print("rank 1 sleeps")
                time.sleep(600)
            train(model, epochs=1000)  # rank 0 waits for rank 1

        executor.submit(train_for_long, model).result()
        """,
    "again": """
        executor.submit(train, model, epochs=2).result()
        """,
    "what is left": """
        from helpers import own_processes
        processes = own_processes()
        executor.shutdown()
        print(processes, own_processes())
        """,
}


def write_notebook(path: Path) -> None:
    """Write the cells into a notebook, which has no outputs."""
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{number}",
            "metadata": {},
            "outputs": [],
            "source": textwrap.dedent(source).strip(),
        }
        for number, source in enumerate(CELLS.values())
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.timeout(300)
def test_a_page(tmp_path, request) -> None:
    """A cell trains with DDP; the stop button ends one in a collective; the next one works."""
    notebook = tmp_path / "training.ipynb"
    write_notebook(notebook)
    pictures = Path(request.config.getoption("--screenshots") or tmp_path).resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    number = {name: place for place, name in enumerate(CELLS)}
    steps = [
        ["run", number["define"]],
        ["run", number["train"]],
        ["picture", str(pictures / "jupyterlab-training.png"), 0, number["train"]],
        ["begin", number["stop"], "[rank 1] rank 1 sleeps"],
        ["stop", number["stop"]],
        ["picture", str(pictures / "jupyterlab-stopped.png"), number["stop"], number["stop"]],
        ["run", number["again"]],
        ["run", number["what is left"]],
    ]
    done = run_python(
        [str(HERE / "drive_page.py"), str(notebook)], tmp_path, stdin=json.dumps(steps), timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    _, train, _, _, stop, _, again, left = found
    assert "100%" in train["out"]
    assert "[rank 1] rank 1 has trained on 718 of 1437 scans" in train["out"]
    assert float(train["out"].rpartition("accuracy: ")[2]) > 0.85
    assert "KeyboardInterrupt" in stop["out"]
    assert stop["seconds"] < SOON
    assert "rank 0 has trained on" in again["out"]
    assert "KeyboardInterrupt" not in again["out"]
    assert left["out"].strip() == "[] []"
    sizes = [path.stat().st_size for path in pictures.glob("jupyterlab-*.png")]
    assert len(sizes) == 2
    assert max(sizes) < 150_000
