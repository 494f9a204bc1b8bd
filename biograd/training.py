"""Training as a generator: one record a step, and nothing that the caller cannot interrupt.

The order of the data in an epoch depends on the seed and the epoch alone, so that a run can go on
from any step; everything else that is needed for that is in ``Trainer.checkpoint``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biograd.data import Split, batches
from biograd.engine import Engine
from biograd.randomness import generator
from biograd.recipes import TrainingRecipe


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step found: clean loss and accuracy of its batch.

    Attributes:
        step: number of steps done, 1 after the first.
        informative: share of the noisy copies whose loss differs from the clean one.
        last: whether the step ends its epoch.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    informative: float
    learning_rate: float
    last: bool


def make_optimiser(recipe: TrainingRecipe, parameters: Iterator[nn.Parameter]) -> Any:
    """Return the recipe's optimiser (Adam: betas 0.9, 0.999)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            trained,
            recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(trained, recipe.learning_rate, weight_decay=recipe.weight_decay)


class Trainer:
    """Trains an engine's network on a split and can stop and go on at every step.

    Args:
        engine: the attached network.
        recipe: optimiser and budget.
        split: the examples to learn from.
        seed: of the order of the examples.

    Raises:
        CapabilityError, RecipeError: see ``Engine.prepare``.
    """

    def __init__(self, engine: Engine, recipe: TrainingRecipe, split: Split, seed: int) -> None:
        self.engine, self.recipe, self.split, self.seed = engine, recipe, split, seed
        self.step = 0
        self.per_epoch = max(1, len(split.inputs) // recipe.batch_size)
        self.drop_last = len(split.inputs) >= recipe.batch_size
        self._prepare()
        self.optimiser = make_optimiser(recipe, engine.parameters())

    @property
    def total(self) -> int:
        """The number of steps of the whole budget."""
        return self.recipe.epochs * self.per_epoch

    def _prepare(self) -> None:
        """Show the engine the first batch: it makes what it learns, and refuses what cannot be."""
        self.engine.network.train()
        stream = generator(self.seed, "order", 0)
        batch = next(batches(self.split, self.recipe.batch_size, stream, self.drop_last))
        self.engine.prepare(*placed(self.engine.network, batch.inputs, batch.targets))

    def steps(self) -> Iterator[StepRecord]:
        """Train from the current step to the end of the budget, yielding after each step.

        Raises:
            BiogradError: the loss is not finite.
        """
        while self.step < self.total:
            epoch, done = divmod(self.step, self.per_epoch)
            stream = generator(self.seed, "order", epoch)
            order = batches(self.split, self.recipe.batch_size, stream, self.drop_last)
            for place, batch in enumerate(order):
                if place >= done:
                    yield self._train(batch.inputs, batch.targets, batch.index, epoch)

    def _train(self, inputs: Tensor, targets: Tensor, index: Tensor, epoch: int) -> StepRecord:
        rate = self._schedule()
        self.engine.network.train()
        inputs, targets = placed(self.engine.network, inputs, targets)
        result = self.engine(inputs, targets, index)
        loss = float(result.loss)
        result.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.engine.update(pace=rate / self.recipe.learning_rate)
        self.step += 1
        accuracy = float((result.outputs.argmax(1) == targets).float().mean())
        last = self.step % self.per_epoch == 0
        return StepRecord(self.step, epoch, loss, accuracy, result.informative, rate, last)

    def _schedule(self) -> float:
        rate = self.recipe.learning_rate
        if self.recipe.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.step / self.total))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that decides the next step: flat tensors and a JSON-able rest."""
        tensors = {f"network.{k}": v for k, v in self.engine.network.state_dict().items()}
        tensors |= {f"engine.{k}": v for k, v in self.engine.state().items()}
        kept = self.optimiser.state_dict()
        options: dict[str, dict[str, Any]] = {}
        for number, state in kept["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{number}.{name}"] = value
                else:
                    options.setdefault(str(number), {})[name] = value
        meta = {
            "step": self.step,
            "epoch": max(self.step - 1, 0) // self.per_epoch,
            "param_groups": kept["param_groups"],
            "options": options,
        }
        return {name: value.detach().clone() for name, value in tensors.items()}, meta

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go back to what ``checkpoint`` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.engine.network.load_state_dict(part("network."))
        self.engine.load_state(part("engine."))
        state: dict[int, dict[str, Any]] = {
            int(number): dict(values) for number, values in meta["options"].items()
        }
        for key, value in part("optimiser.").items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": meta["param_groups"]})
        self.step = int(meta["step"])


def placed(network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets on the network's device, the inputs in its floating-point type."""
    first = next(network.parameters())
    dtype = first.dtype if inputs.is_floating_point() else None
    return inputs.to(first.device, dtype), targets.to(first.device)


@torch.no_grad()
def evaluate(engine: Engine, split: Split, batch_size: int = 256) -> tuple[float, float]:
    """Return the accuracy (0..1) and the mean loss of a split, in evaluation mode."""
    network = engine.network
    training = network.training
    network.eval()
    correct, total = 0.0, 0.0
    for batch in batches(split, batch_size, None, drop_last=False):
        inputs, targets = placed(network, batch.inputs, batch.targets)
        outputs = network(inputs)
        correct += float((outputs.argmax(1) == targets).sum())
        total += float(engine.loss(outputs, targets).sum())
    network.train(training)
    return correct / len(split.inputs), total / len(split.inputs)


@torch.no_grad()
def activity(network: nn.Module, inputs: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return each named module's output on ``inputs``, in evaluation mode, on the CPU.

    ``[B, units]`` for a rate layer (images flattened, steps averaged), ``[B, steps, units]`` for
    spikes.
    """
    from biograd.networks.network import Network, recorded

    training = network.training
    network.eval()
    with recorded(network, names) as outputs:
        network(placed(network, inputs, inputs)[0])
    network.train(training)
    spiking = getattr(network, "spiking", False)
    steps = network.steps if isinstance(network, Network) else 1
    found = {}
    for name, parts in outputs.items():
        if len(parts) == 1:
            value = parts[0]
        else:  # called in every step
            value = torch.stack(parts, 1) if len(parts) == steps else torch.stack(parts).mean(0)
        value = value.mean(1) if steps > 1 and not spiking else value
        found[name] = (value if spiking else value.flatten(1)).cpu()
    return found
