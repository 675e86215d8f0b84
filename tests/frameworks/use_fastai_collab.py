"""fastai's collab learner: how dark is a pixel (item) in a scan (user) of scikit-learn's digits."""

import pandas as pd
from fastai.collab import *
from fastai.distributed import *
from fastai.tabular.all import *
from framework_checks import run, weights
from sklearn.datasets import load_digits


def train():
    """Train on this rank's share, as fastai deals it out."""
    scans = pd.DataFrame(load_digits().data[:200]).rename_axis("scan").reset_index()
    ratings = scans.melt("scan", var_name="pixel", value_name="darkness")
    dls = CollabDataLoaders.from_df(ratings, bs=128, seed=0)
    learn = collab_learner(dls, n_factors=10, y_range=(-1, 17))
    with learn.no_bar(), learn.no_logging():
        with learn.distrib_ctx(sync_bn=False):
            learn.fit_one_cycle(3, 0.01)
        loss, *_ = learn.validate()
    return {
        "rank": rank_distrib(),
        "size": num_distrib() or 1,
        "accuracy": 1 - float(loss) / ratings["darkness"].var(),
        "weights": weights(learn.model),
    }


imports = "from fastai.collab import *\nfrom fastai.distributed import *"
run(train, "fastai.collab", "fastai.distributed", imports=imports)
