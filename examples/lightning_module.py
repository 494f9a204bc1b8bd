"""Any rule of biograd in a training loop of Lightning.

    pip install lightning && python examples/lightning_module.py

``training_step`` returns ``Result.surrogate``: a scalar whose value is the loss and whose gradient
is the credit that the rule gives.  So the loop of Lightning is as always: it calls ``backward`` and
the optimiser, clips, accumulates, schedules and saves checkpoints.  Two things are the rule's own:
what it learns by itself (``engine.update``), and its state beside the weights (``engine.state``).
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import biograd


class Learner(lightning.LightningModule):
    """A network of yours that learns by a rule.

    Args:
        network: any module; its hidden layers learn by the rule.
        rule: as in ``biograd.WeakGradient()``.
        batch: some inputs and targets, by which the rule learns the shapes.
        learning_rate: of Adam.
        settings: of ``biograd.attach``: ``loss``, ``sites``, ``decorrelate``, ``seed``, ...
    """

    def __init__(
        self,
        network: nn.Module,
        rule: Any,
        batch: tuple[Tensor, Tensor],
        learning_rate: float = 0.005,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.network, self.learning_rate = network, learning_rate
        self.engine = biograd.attach(network, rule, **settings)
        self.engine.prepare(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam on the network's parameters and those of the rule."""
        return torch.optim.Adam(self.engine.parameters(), self.learning_rate)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """Return the loss, whose gradient is the rule's credit."""
        result = self.engine(*batch)
        self.log("train_loss", result.loss)
        return result.surrogate

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the rule learn what is its own: feedback, traces, decorrelation."""
        self.engine.update()

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        """Measure the accuracy."""
        inputs, targets = batch
        right = (self.network(inputs).argmax(1) == targets).float().mean()
        self.log("accuracy", right, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the rule and of its random numbers."""
        checkpoint["engine"] = self.engine.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it back."""
        self.engine.load_state(checkpoint["engine"])


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return digits to learn from and to measure by."""
    digits = load_digits()
    rows = TensorDataset(torch.tensor(digits.data / 16).float(), torch.tensor(digits.target))
    train, held_out = random_split(rows, [1437, 360], torch.Generator().manual_seed(0))
    return DataLoader(train, 32, shuffle=True), DataLoader(held_out, 360)


def main(epochs: int = 10) -> float:
    """Train, and return the accuracy on the held-out digits."""
    lightning.seed_everything(0)
    network = biograd.build("spiking", 64, 10)
    train, held_out = loaders()
    rule = biograd.WeakGradient(copies=17, sigma=0.2)
    learner = Learner(network, rule, next(iter(train)))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(learner, train, held_out)
    return float(trainer.callback_metrics["accuracy"])


if __name__ == "__main__":
    print(f"{100 * main():.1f} %")
