"""fastai's vision learner, on scikit-learn's digits."""

import numpy as np
from fastai.distributed import *
from fastai.vision.all import *
from framework_checks import make_model, run, weights
from sklearn.datasets import load_digits


def train():
    """Train on this rank's share, as fastai deals it out."""
    data = load_digits()
    block = DataBlock(
        (ImageBlock(PILImageBW), CategoryBlock),
        get_x=lambda index: PILImageBW.create((data.images[index] * 15).astype(np.uint8)),
        get_y=lambda index: int(data.target[index]),
        splitter=IndexSplitter(list(range(0, 1797, 5))),
    )
    dls = block.dataloaders(list(range(1797)), bs=64, num_workers=0)
    learn = Learner(dls, make_model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        with learn.distrib_ctx(sync_bn=False):
            learn.fit_one_cycle(3, 0.01)
        _, *metrics = learn.validate()
    return {
        "rank": rank_distrib(),
        "size": num_distrib() or 1,
        "accuracy": float(metrics[0]),
        "weights": weights(learn.model),
    }


imports = "from fastai.vision.all import *\nfrom fastai.distributed import *"
run(train, "fastai.vision.all", "fastai.distributed", imports=imports)
