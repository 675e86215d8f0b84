"""fastai's tabular learner, on scikit-learn's breast cancer data."""

from fastai.distributed import *
from fastai.tabular.all import *
from framework_checks import run, weights
from sklearn.datasets import load_breast_cancer


def train():
    """Train on this rank's share, as fastai deals it out."""
    data = load_breast_cancer(as_frame=True)
    frame = data.frame.assign(target=data.target.map({0: "malignant", 1: "benign"}))
    dls = TabularDataLoaders.from_df(
        frame,
        procs=[Normalize],
        cont_names=list(data.feature_names),
        y_names="target",
        y_block=CategoryBlock(),
        valid_idx=list(range(0, len(frame), 5)),
        bs=32,
    )
    learn = tabular_learner(dls, layers=[32], metrics=accuracy)
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


imports = "from fastai.tabular.all import *\nfrom fastai.distributed import *"
run(train, "fastai.tabular.all", "fastai.distributed", imports=imports)
