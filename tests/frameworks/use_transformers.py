"""transformers' Trainer: with arguments made before the gangs, as in a cell of its own."""

from framework_checks import accuracy, digits, make_model, run, weights
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments


class Scans(Dataset):
    """The digits, one dict each, as the Trainer takes them."""

    def __init__(self):
        self.images, self.labels = digits()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"images": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A model that returns its loss, as the Trainer takes it."""

    def __init__(self):
        super().__init__()
        self.layers = make_model()

    def forward(self, images, labels):
        """Return loss and logits."""
        logits = self.layers(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train():
    """Train on this rank's share, as the Trainer deals it out."""
    model = Classifier()
    trainer = Trainer(model, arguments, train_dataset=Scans())
    trainer.train()
    return {
        "rank": trainer.args.process_index,
        "size": trainer.args.world_size,
        "seen": trainer.state.global_step * 32,
        "accuracy": accuracy(model.layers),
        "weights": weights(model),
    }


arguments = TrainingArguments(
    "out",
    per_device_train_batch_size=32,
    num_train_epochs=4,
    learning_rate=0.003,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
run(train, "transformers.trainer")
if (arguments.world_size, arguments.process_index) != (1, 0):
    raise SystemExit("the arguments that were made before the gangs have changed")
