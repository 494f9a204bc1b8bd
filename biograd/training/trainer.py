"""Training as a generator: one record a step, and nothing that the caller cannot interrupt.

The order of the data in an epoch depends on the seed and the epoch alone, so that a run can go on
from any step; everything else that is needed for that is in ``Trainer.checkpoint``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biograd import ranks, tasks
from biograd.circuit.delays import narrowing
from biograd.data import Batch, Source, batches
from biograd.engine import Engine
from biograd.engine.preparation import part
from biograd.errors import BiogradError, CapabilityError
from biograd.randomness import generator
from biograd.ranks import parallel
from biograd.recipes import TrainingRecipe
from biograd.recipes.schedules import factor
from biograd.substrate.finiteness import check_parameters
from biograd.substrate.kept import way_out
from biograd.tasks import added, summed
from biograd.training.evaluation import placed
from biograd.training.optimisers import make_optimiser
from biograd.training.selection import Selection
from biograd.training.step_record import StepFigures, StepRecord

BEST = "best."
"""Prefix of what a checkpoint keeps of the best epoch."""
KEPT = ("network.", "engine.decorrelation.")
"""What of a checkpoint decides the outputs."""


def _shadow(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of zeros of the same shape and type, with a gradient of zeros."""
    shadow = nn.Parameter(torch.zeros_like(parameter, device="cpu"))
    shadow.grad = torch.zeros_like(shadow)
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
        selection: what the validation rows have said so far.
        stopped: why the training ends before its budget is spent; "": it does not.

    Raises:
        CapabilityError, RecipeError: see ``Engine.prepare`` and ``Engine.check_ranks``.
    """

    def __init__(self, engine: Engine, recipe: TrainingRecipe, source: Source, seed: int) -> None:
        self.engine, self.recipe, self.source, self.seed = engine, recipe, source, seed
        self.step, self.passes, self.seconds = 0, 0, 0.0
        self.per_epoch = max(1, len(source) // recipe.batch_size)
        self.drop_last = len(source) >= recipe.batch_size
        self.asked: list[int] = []
        self.selection, self.stopped = Selection(), ""
        self._best: dict[str, Tensor] = {}
        if ranks.size() > 1:
            if recipe.accumulate > 1:
                raise CapabilityError(
                    f"training.accumulate = {recipe.accumulate}: {ranks.size()} processes divide "
                    "every batch already: leave it out"
                )
            engine.check_ranks()
            network = engine.network  # the user's own may have been drawn anew on each rank
            ranks.copy_first([*network.parameters(), *network.buffers()])
        self._prepare()
        self.optimiser = make_optimiser(recipe, engine.parameters())
        self._narrowing = narrowing(engine.network)

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
        while not self.ended:
            epoch, done = divmod(self.step, self.per_epoch)
            for batch in self._order(epoch, done):
                yield self._train(batch, epoch)
                if self.ended:
                    break

    @property
    def ended(self) -> bool:
        """Whether there is no step to do: the budget is spent, or the training was stopped."""
        return self.spent >= self.budget or bool(self.stopped)

    def judge(self, value: float) -> None:
        """Take the figure of the epoch that has just ended, on the validation rows."""
        recipe, epoch = self.recipe, -(-self.step // self.per_epoch)
        better = self.engine.task.better
        self.selection = self.selection.after(value, better, self.step, epoch, recipe.wait)
        if recipe.keep == "best" and self.selection.step == self.step:
            found = self._own_tensors()
            self._best = {k: v.detach().clone() for k, v in found.items() if k.startswith(KEPT)}
        self._end_idle()

    def _end_idle(self) -> None:
        """Stop where nothing better was found for too long."""
        limit, found = self.recipe.stop_after, self.selection
        if limit is not None and found.idle >= limit:
            self.stopped = f"nothing better than epoch {found.epoch} in {found.idle} epochs"

    def take_best(self) -> None:
        """Give the network the weights of the best epoch, if the recipe asks for them."""
        if self._best:
            self.engine.network.load_state_dict(part(self._best, "network."))
            if (decorrelate := self.engine.decorrelate) is not None:
                decorrelate.load_state_dict(part(self._best, "engine.decorrelation."))

    def _order(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, which follow from seed and epoch alone."""
        size, key = self.recipe.batch_size, (self.seed, epoch)
        order = generator(self.seed, "order", epoch)
        return batches(self.source, size, order, self.drop_last, skip=skip, key=key)

    def _train(self, batch: Batch, epoch: int) -> StepRecord:
        started, before = time.perf_counter(), self.spent
        rate = self._set_rate()
        self.engine.network.train()
        for layer in self._narrowing:
            layer.narrow(before / self.budget)
        own = parallel.share(len(batch.targets), self.engine.estimator.divides)
        with parallel.sharing(own):
            found, copies = self._credited(batch, own.rows)
            parallel.average_gradients(self.engine.parameters())
            norm = self._clip()
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.engine.update(pace=rate / self.recipe.learning_rate)
        self.step += 1
        found = dataclasses.replace(found, seconds=time.perf_counter() - started)
        found = found.together(own, copies, self.asked)
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
            self.engine.task.figures(found.totals),
            found.informative,
            rate,
            last,
            self.spent - before,
            found.stop,
            found.totals,
            norm,
            found.each,
        )

    def _credited(self, batch: Batch, rows: slice) -> tuple[StepFigures, int]:
        """Leave the gradients of a batch with the parameters; return what was found, and copies.

        A batch that is run in parts has the gradient ``sum over parts of (b_p / B) g_p``.
        """
        inputs, targets, index = batch.inputs[rows], batch.targets[rows], batch.index[rows]
        total, parts = len(targets), min(self.recipe.accumulate, len(targets))
        if parts == 1:
            return self._part(inputs, targets, index, None, len(batch.targets))
        found, copies, together = StepFigures(0.0, {}, 0.0, 0.0), 0, tasks.Totals()
        columns = (one.tensor_split(parts) for one in (inputs, targets, index))
        for x, y, rows_of in zip(*columns, strict=True):
            weight, self.engine.step = len(y) / total, self.step  # all parts are of one step
            one, copies = self._part(x, y, rows_of, weight, len(y))
            together = added(together, one.totals)
            found = StepFigures(
                found.loss + weight * one.loss,
                together,
                found.informative + weight * one.informative,
                0.0,
                each={n: torch.cat([*([found.each[n]] if n in found.each else []), v])
                      for n, v in one.each.items()},
            )  # fmt: skip
        return found, copies

    def _part(
        self, inputs: Tensor, targets: Tensor, index: Tensor, weight: float | None, count: int
    ) -> tuple[StepFigures, int]:
        """Run the engine on some rows, whose gradient counts by ``weight`` (None: it is all)."""
        given = placed(self.engine.network, inputs, targets)
        with self._precision(given[0].device.type):
            result = self.engine(*given, index)
        loss = float(result.loss)
        if weight is None:
            result.backward()
        else:
            (weight * result.surrogate).backward()
        self.passes += result.passes * count
        totals = summed(self.engine.task.metrics(result.outputs, given[1]))
        kept = self.engine.task.each(result.outputs, given[1])
        each = {name: parallel.gather(values.cpu()) for name, values in kept.items()}
        figures = StepFigures(loss, totals, result.informative, 0.0, each=each)
        return figures, len(result.losses) - 1

    def _precision(self, device: str) -> contextlib.AbstractContextManager[object]:
        if self.recipe.precision == "full":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def _clip(self) -> float | None:
        """Shorten all gradients together to the norm that is asked for; return what it was."""
        if self.recipe.clip is None:
            return None
        trained = [one for one in self.engine.parameters() if one.grad is not None]
        return float(torch.nn.utils.clip_grad_norm_(trained, self.recipe.clip))

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

    def _set_rate(self) -> float:
        recipe = self.recipe
        rate = recipe.learning_rate * factor(recipe, self.spent, self.budget)
        if recipe.schedule == "plateau":
            rate *= recipe.decay**self.selection.lowered
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _own_tensors(self) -> dict[str, Tensor]:
        """Return the state of the network and of the engine, flat."""
        tensors = {f"network.{k}": v for k, v in self.engine.network.state_dict().items()}
        return tensors | {f"engine.{k}": v for k, v in self.engine.state().items()}

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that decides the next step: flat tensors and a JSON-able rest."""
        tensors = self._own_tensors() | {BEST + k: v for k, v in self._best.items()}
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
            **({"selection": dataclasses.asdict(self.selection)} if self.selection.epoch else {}),
        }
        return {name: value.detach().clone() for name, value in tensors.items()}, meta

    def optimiser_state(self) -> dict[str, dict[str, Any]]:
        """Return what the optimiser keeps of each parameter once it has moved it: names, shapes.

        Numbers are text, as in ``checkpoint``.
        """
        twin = make_optimiser(self.recipe, map(_shadow, self.optimiser.param_groups[0]["params"]))
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
        self.selection = Selection.of(meta.get("selection", {}))
        self._best = part(tensors, BEST)
        self._end_idle()
