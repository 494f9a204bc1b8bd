"""Training as a generator: one record a step, and nothing that the caller cannot interrupt.

The order of the data in an epoch depends on the seed and the epoch alone, so that a run can go on
from any step; everything else that is needed for that is in ``Trainer.checkpoint``.
"""

from __future__ import annotations

import dataclasses
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biograd import ranks, tasks
from biograd.data import Batch, Source, batches
from biograd.engine import Engine
from biograd.engine.preparation import part
from biograd.errors import BiogradError, CapabilityError
from biograd.randomness import generator
from biograd.ranks import parallel
from biograd.recipes import TrainingRecipe
from biograd.substrate.finiteness import check_parameters
from biograd.substrate.kept import way_out
from biograd.tasks import added, flat, folded, summed


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step found: clean loss and metrics of its batch.

    Attributes:
        step: number of steps done, 1 after the first.
        metrics: of the task, by name.
        totals: what the metrics of several steps together follow from.
        informative: share of the noisy copies whose loss differs from the clean one.
        last: whether the step ends its epoch, or the training.
        spent: of the budget, in its own unit (steps, forward passes or seconds).
        stop: number of the signal that asked some rank to stop, 0 if none did.
    """

    step: int
    epoch: int
    loss: float
    metrics: Mapping[str, float]
    informative: float
    learning_rate: float
    last: bool
    spent: float
    stop: int = 0
    totals: tasks.Totals = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StepFigures:
    """What one step found on one rank, or on all together."""

    loss: float
    totals: tasks.Totals
    informative: float
    seconds: float
    stop: int = 0

    def together(self, own: parallel.Share, copies: int, asked: Sequence[int]) -> StepFigures:
        """Return the figures of the whole batch; the time is that of the slowest rank.

        Args:
            own: what this rank has computed.
            copies: number of noisy copies that it has run.
            asked: signals that asked it to stop.
        """
        if ranks.size() == 1:
            return self
        noisy = own.weight * copies
        means = [own.weight * self.loss, noisy * self.informative, noisy]
        last = [self.seconds, float(asked[0] if asked else 0)]
        columns = list(zip(*ranks.table([*means, *last, *flat(self.totals)]), strict=True))
        loss, informed, noisy = (math.fsum(column) for column in columns[:3])
        seconds, stop = max(columns[3]), int(max(columns[4]))
        totals = folded([math.fsum(column) for column in columns[5:]], self.totals)
        informative = informed / noisy if noisy else 1.0
        return StepFigures(loss, totals, informative, seconds, stop)


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


def _shadow(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of the same shape and type with a gradient, neither of which is stored."""
    shadow = nn.Parameter(parameter.detach().to("meta"))
    shadow.grad = torch.empty_like(shadow)
    return shadow


class Trainer:
    """Trains an engine's network on a source and can stop and go on at every step.

    Args:
        engine: the attached network.
        recipe: optimiser and budget.
        source: the examples to learn from.
        seed: of the order of the examples.

    Attributes:
        step: number of steps done.
        passes: forward passes of these steps, examples times copies; backward ones do not count.
        seconds: what these steps took, without evaluation and files.
        asked: numbers of the signals that asked this process to stop; all ranks hear of them.

    Raises:
        CapabilityError, RecipeError: see ``Engine.prepare`` and ``Engine.check_ranks``.
    """

    def __init__(self, engine: Engine, recipe: TrainingRecipe, source: Source, seed: int) -> None:
        self.engine, self.recipe, self.source, self.seed = engine, recipe, source, seed
        self.step, self.passes, self.seconds = 0, 0, 0.0
        self.per_epoch = max(1, len(source) // recipe.batch_size)
        self.drop_last = len(source) >= recipe.batch_size
        self.asked: list[int] = []
        if ranks.size() > 1:
            engine.check_ranks()
            network = engine.network  # the user's own may have been drawn anew on each rank
            ranks.copy_first([*network.parameters(), *network.buffers()])
        self._prepare()
        self.optimiser = make_optimiser(recipe, engine.parameters())

    @property
    def total(self) -> int:
        """The whole budget in whole units: of epochs the number of steps."""
        return math.ceil(self.budget)

    @property
    def budget(self) -> float:
        """The whole budget, in steps, forward passes or seconds (``TrainingRecipe.budget``)."""
        unit, amount = self.recipe.budget
        return amount * self.per_epoch if unit == "epochs" else amount

    @property
    def spent(self) -> float:
        """What is spent of the budget, in its own unit."""
        done = {"epochs": self.step, "passes": self.passes, "seconds": self.seconds}
        return done[self.recipe.budget[0]]

    @property
    def epochs(self) -> float:
        """The number of epochs done; whole, or with a fraction where one is cut short."""
        whole, rest = divmod(self.step, self.per_epoch)
        return self.step / self.per_epoch if rest else whole

    def _prepare(self) -> None:
        """Show the engine the first batch: it makes what it learns, and refuses what cannot be."""
        self.engine.network.train()
        batch = next(self._order(0))
        self.engine.prepare(*placed(self.engine.network, batch.inputs, batch.targets))
        if self.engine.keeps:
            raise CapabilityError(
                "the network keeps a state from batch to batch "
                f"({', '.join(self.engine.keeps[:3])}): "
                + way_out(self.engine.network, self.engine.keeps, "train")
            )

    def steps(self) -> Iterator[StepRecord]:
        """Train from the current step to the one that spends the budget, yielding after each.

        Raises:
            BiogradError: the loss is not finite.
        """
        while self.spent < self.budget:
            epoch, done = divmod(self.step, self.per_epoch)
            for batch in self._order(epoch, done):
                yield self._train(batch.inputs, batch.targets, batch.index, epoch)
                if self.spent >= self.budget:
                    break

    def _order(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, which follow from seed and epoch alone."""
        size, key = self.recipe.batch_size, (self.seed, epoch)
        order = generator(self.seed, "order", epoch)
        return batches(self.source, size, order, self.drop_last, skip=skip, key=key)

    def _train(self, inputs: Tensor, targets: Tensor, index: Tensor, epoch: int) -> StepRecord:
        started, before = time.perf_counter(), self.spent
        rate = self._schedule()
        self.engine.network.train()
        own = parallel.share(len(targets), self.engine.estimator.divides)
        with parallel.sharing(own):
            given = placed(self.engine.network, inputs[own.rows], targets[own.rows])
            result = self.engine(*given, index[own.rows])
            loss = float(result.loss)
            result.backward()
            parallel.average_gradients(self.engine.parameters())
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.engine.update(pace=rate / self.recipe.learning_rate)
        self.step += 1
        self.passes += result.passes * len(targets)
        task = self.engine.task
        totals = summed(task.metrics(result.outputs, given[1]))
        found = StepFigures(loss, totals, result.informative, time.perf_counter() - started)
        found = found.together(own, len(result.losses) - 1, self.asked)
        self.seconds += found.seconds
        last = self.step % self.per_epoch == 0 or self.spent >= self.budget
        if last:  # the last update is followed by no pass that would tell
            check_parameters(self.engine.network, self.step)
        if last and ranks.size() > 1:
            self._check_agreement()
        return StepRecord(
            self.step,
            epoch,
            found.loss,
            task.figures(found.totals),
            found.informative,
            rate,
            last,
            self.spent - before,
            found.stop,
            found.totals,
        )

    def _check_agreement(self) -> None:
        """Make sure that all ranks have drawn the same random numbers and learned the same.

        Sums of parameters may differ by rounding, if the machines do.

        Raises:
            BiogradError: they have not.
        """
        streams = self.engine.streams.values()
        state = [float(zlib.crc32(s.get_state().numpy().tobytes())) for s in streams]
        learned = [*self.engine.parameters(), *self.engine.network.buffers()]
        total = sum((float(p.detach().abs().sum()) for p in learned), 0.0)
        rows = ranks.table([*state, total])
        if any(row[:-1] != rows[0][:-1] for row in rows):
            raise BiogradError(
                f"the ranks' random numbers are no longer the same at step {self.step}: some part "
                "of the network draws other than so many for each example: train in one process"
            )
        if any(abs(row[-1] - total) > 1e-3 * total for row in rows):
            raise BiogradError(
                f"the ranks' parameters are no longer the same at step {self.step}: some part of "
                "the network takes a batch as a whole: train in one process"
            )

    def _schedule(self) -> float:
        rate = self.recipe.learning_rate
        if self.recipe.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.spent / self.budget))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that decides the next step: flat tensors and a JSON-able rest."""
        tensors = {f"network.{k}": v for k, v in self.engine.network.state_dict().items()}
        tensors |= {f"engine.{k}": v for k, v in self.engine.state().items()}
        kept = self.optimiser.state_dict()
        options: dict[str, dict[str, Any]] = {str(number): {} for number in kept["state"]}
        for number, state in kept["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{number}.{name}"] = value
                else:
                    options[str(number)][name] = value
        meta = {
            "step": self.step,
            "epoch": max(self.step - 1, 0) // self.per_epoch,
            "passes": self.passes,
            "training_seconds": self.seconds,
            "param_groups": kept["param_groups"],
            "options": options,
        }
        return {name: value.detach().clone() for name, value in tensors.items()}, meta

    def optimiser_state(self) -> dict[str, dict[str, Any]]:
        """Return what the optimiser keeps of each parameter once it has moved it, without values.

        Numbers are text, as in ``checkpoint``; tensors have shapes and types, but no memory.
        """
        twin = make_optimiser(
            self.recipe, iter(map(_shadow, self.optimiser.param_groups[0]["params"]))
        )
        twin.step()
        return {str(number): state for number, state in twin.state_dict()["state"].items()}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go back to what ``checkpoint`` returned; settings of the optimiser stay the recipe's."""
        self.engine.network.load_state_dict(part(tensors, "network."))
        self.engine.load_state(part(tensors, "engine."))
        state: dict[int, dict[str, Any]] = {
            int(number): dict(values) for number, values in meta["options"].items()
        }
        for key, value in part(tensors, "optimiser.").items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step = int(meta["step"])
        self.passes = int(meta.get("passes", 0))  # not counted by the first run files
        self.seconds = float(meta.get("training_seconds", 0.0))


def placed(network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and targets on the network's device, the inputs in its floating-point type."""
    first = next(network.parameters())
    dtype = first.dtype if inputs.is_floating_point() else None
    return inputs.to(first.device, dtype), targets.to(first.device)


@torch.no_grad()
def evaluate(engine: Engine, split: Source, batch_size: int = 256) -> dict[str, float]:
    """Return the task's metrics and the mean ``loss`` of a split, in evaluation mode.

    Ranks divide the batches; all of them must ask.
    """
    network, task = engine.network, engine.task
    training = network.training
    network.eval()
    form = getattr(engine.substrate, "outputs", None)
    totals: tasks.Totals = {}
    for batch in batches(split, batch_size, None, drop_last=False):
        with parallel.sharing(parallel.share(len(batch.targets))) as own:
            rows = own.rows if own.weight else slice(0, 1)  # every rank must know the metrics
            inputs, targets = placed(network, batch.inputs[rows], batch.targets[rows])
            outputs = network(inputs) if form is None else form(network(inputs))
            losses = task.losses(outputs, targets)
            found = summed(
                {"loss": (losses, torch.ones_like(losses)), **task.metrics(outputs, targets)}
            )
            if not own.weight:
                found = folded([0.0] * len(flat(found)), found)
            totals = added(totals, found)
    network.train(training)
    sums = [sum(column) for column in zip(*ranks.table(flat(totals)), strict=True)]
    totals = folded(sums, totals)
    (loss,), (count,) = totals.pop("loss")
    return {**task.figures(totals), "loss": loss / count}
