"""A run under way: train, measure, write, commit, and stop when asked to."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from biograd import ranks
from biograd.callbacks import NONE, Stop, Watchers
from biograd.configuration import OwnParts
from biograd.errors import word
from biograd.progress import Progress
from biograd.recipes import TrainingRecipe
from biograd.recording.costs import operations, peak_memory
from biograd.recording.figures import (
    EpochSums,
    firing,
    parameter_measures,
    prefixed,
    silent,
)
from biograd.recording.moments import SnapshotSchedule
from biograd.recording.restoring import SNAPSHOT, epoch_sums, restore
from biograd.recording.sampling import Sampling
from biograd.recording.training_setup import Experiment, frozen_hidden
from biograd.runs.layout import Array, Probe
from biograd.runs.writer import RunWriter
from biograd.signals import BASE, Interrupted, graceful
from biograd.training import StepRecord, placed

Looked = tuple[dict[str, torch.Tensor], dict[str, Array]]
"""Activity by layer, and rows of further data sets."""


class NullWriter:
    """Stands on the other ranks where rank 0 has its writer; writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scalars(self, *_: object) -> None:
        """Write nothing."""

    def summary(self, _values: object) -> None:
        """Write nothing."""

    def close(self, _status: object) -> None:
        """Close nothing."""

    def abandon(self, _status: object) -> None:
        """Close nothing."""


class Recording:
    """One run under way: trains, measures, writes, commits."""

    def __init__(
        self,
        experiment: Experiment,
        writer: RunWriter | NullWriter,
        probe: Probe,
        sampling: Sampling | None,
        progress: Progress,
        watchers: Watchers = NONE,
    ) -> None:
        self.experiment, self.writer, self.progress = experiment, writer, progress
        self.callbacks = () if ranks.rank() else watchers.callbacks
        self.probe, self.sampling = probe, sampling
        recipe = experiment.configuration.recipe.recording
        self.moments = SnapshotSchedule(recipe, experiment.trainer.per_epoch)
        self.pristine: OwnParts | None = None
        self._stopped_by = "validation"
        self.restored = False
        self._firing: dict[str, float] = {}
        self.seconds = 0.0
        self._started = time.perf_counter()
        self._sums = EpochSums()
        self._silent: dict[str, float] = {}
        self._memory = 0
        self._saved: int | None = None
        self._norms: dict[str, torch.Tensor] = {}

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the trainer's checkpoint, with the running sums of the epoch."""
        tensors, meta = self.experiment.trainer.checkpoint()
        tensors |= {SNAPSHOT + name: value for name, value in self._norms.items()}
        elapsed = self.seconds + time.perf_counter() - self._started
        self._memory = max(self._memory, peak_memory() or 0)
        own = {
            "sums": dataclasses.asdict(self._sums),
            "seconds": elapsed,
            "peak_memory_bytes": self._memory,
        }
        return tensors, meta | own

    def restore(
        self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], where: object
    ) -> None:
        """Go on from a checkpoint.

        Raises:
            RunFileError: it does not fit.
        """
        self.restored = True
        restore(self.experiment, tensors, meta, where)
        self._saved = self.experiment.trainer.step
        batch = self.experiment.configuration.recipe.training.batch_size
        self._sums, self.seconds, self._memory = epoch_sums(meta, batch, where)
        self._norms = {
            name.removeprefix(SNAPSHOT): value
            for name, value in tensors.items()
            if name.startswith(SNAPSHOT)
        }

    def run(self, until: int | None = None) -> dict[str, Any]:
        """Train to the end of the budget, pack the file and return the summary.

        Args:
            until: end after this step as an interrupted run does, but packed; the summary is
                empty then.
        """
        experiment, trainer = self.experiment, self.experiment.trainer
        configuration = experiment.configuration
        title = f"{configuration.model} · {configuration.dataset} · {configuration.estimator}"
        self.progress.begin(trainer.total - int(trainer.spent), title + _budget(trainer.recipe))
        try:
            self._tell("on_start", experiment.engine, self.writer.path)
            with graceful() as stop:
                self._train(stop, until)
                # torchrun has asked all
                summary = self._finish(until) if ranks.size() > 1 else None
            summary = summary or self._finish(until)
            self._tell("on_end", summary)
        except Interrupted:
            self.writer.abandon("interrupted")
            raise
        except ranks.Lost as error:
            with ranks.deaf():
                self.writer.abandon("interrupted")
            error.place = self._place()
            raise
        except (KeyboardInterrupt, SystemExit) as error:  # while the results were measured
            self.writer.abandon("interrupted")
            code = error.code if isinstance(error, SystemExit) else BASE + signal.SIGINT
            raise Interrupted(
                f"interrupted; go on from the last commit with: {self._go_on}",
                int(code or 0) - BASE,
            ) from error
        except BaseException:
            self.writer.abandon("crashed")
            raise
        finally:
            experiment.engine.detach()
        return summary

    @property
    def _shown(self) -> dict[str, str]:
        return {"headline": self.experiment.engine.task.headline}

    @property
    def _go_on(self) -> str:
        asks = self.experiment.configuration.asks
        return ranks.command(f"resume {word(self.writer.path)}{asks}")

    def _place(self) -> str:
        """Return where a rank was lost, and how to go on."""
        after = f"after step {self.experiment.trainer.step}"
        if self._saved is None:
            return f"{after}, before anything was saved; start again with --force"
        return f"{after}; all up to step {self._saved} is saved; go on with: {self._go_on}"

    def _train(self, stop: list[int], until: int | None) -> None:
        """Train to the end of the budget, or until some rank is asked to stop."""
        trainer = self.experiment.trainer
        trainer.asked = stop
        if not self.restored:
            self._snapshot(0, self._look())
            self._commit()
        for record in trainer.steps() if trainer.step != until else ():
            self._record(record)
            asked = stop[:1] if ranks.size() == 1 else [record.stop] * bool(record.stop)
            for number in asked:
                self._commit()
                raise Interrupted(
                    f"interrupted after step {record.step}, all of it is saved; go on with: "
                    f"{self._go_on}",
                    number,
                )
            if record.step == until:
                break

    def _finish(self, until: int | None) -> dict[str, Any]:
        """Measure what came out, pack the file and return the summary."""
        trainer = self.experiment.trainer
        if trainer.step == until:
            self._commit()
            self.writer.close("interrupted")
            return {}
        if self._saved != trainer.step:
            self._commit()
        trainer.take_best()  # behind the checkpoint, which is that of the last step
        summary = self._summary()
        self.writer.scalars(  # after the checkpoint: who goes on from that writes it again
            "final",
            trainer.step,
            max(trainer.step - 1, 0) // trainer.per_epoch,
            {k: v for k, v in summary.items() if isinstance(v, float)},
        )
        self.writer.summary(summary)
        self.writer.close("completed")
        return summary

    def _tell(self, what: str, *given: object) -> None:
        """Call the callbacks, each of which may ask for the end."""
        for callback in self.callbacks:
            try:
                getattr(callback, what)(*given)
            except Stop as error:
                self.experiment.trainer.stopped = str(error) or "a callback asked for it"
                self._stopped_by = "callback"

    def _record(self, record: StepRecord) -> None:
        values = {
            "loss": record.loss,
            **record.metrics,
            "informative": record.informative,
            "learning_rate": record.learning_rate,
            **({} if record.gradient_norm is None else {"gradient_norm": record.gradient_norm}),
        }
        self.writer.scalars("train_step", record.step, record.epoch, values)
        for row in zip(*(one.tolist() for one in record.each.values()), strict=True):
            kept = dict(zip(record.each, map(float, row), strict=True))
            self.writer.scalars("episode", record.step, record.epoch, kept)
        self.progress.step({**values, "spent": record.spent, **self._shown, **self._firing})
        self._tell("on_step", record.step, values)
        self._sums = self._sums.and_of(record)
        if not record.last and self.moments.within(record.step):
            self._snapshot(record.step, self._look())
        if record.last:
            self._end_epoch(record)

    def _end_epoch(self, record: StepRecord) -> None:
        trainer, configuration = self.experiment.trainer, self.experiment.configuration
        engine, sums = self.experiment.engine, self._sums
        values = {"train_loss": sums.loss / sums.steps}
        values |= prefixed("train", engine.task.figures(sums.totals))
        found = self.experiment.evaluate(self.experiment.dataset.evaluated)
        values |= prefixed("test", found)
        epoch, recipe = record.epoch + 1, configuration.recipe.training
        best = False
        if trainer.recipe.chooses:
            trainer.judge(found[engine.task.headline])
            best = trainer.selection.epoch == epoch
        epochs = recipe.epochs if recipe.budget[0] == "epochs" else None
        looked = self._look()
        activity = looked[0]
        self._firing = firing(activity)
        values |= self._firing
        self._silent = silent(activity)
        values |= {f"off_diagonal_energy.{name}": e for name, e in self._energies().items()}
        values |= self.experiment.engine.estimator.measures()
        shot = self.moments.ends(epoch, record.step, best) or trainer.ended
        if shot:
            self._snapshot(record.step, looked)
        self.writer.scalars("epoch", record.step, record.epoch, values)
        self._sums = EpochSums()
        rule = configuration.recipe.recording.checkpoints
        self._commit({"last": False, "best": best, "snapshots": shot}[rule])
        place = {"epoch": epoch, "step": record.step} | ({"epochs": epochs} if epochs else {})
        on = {"evaluated_on": self.experiment.dataset.evaluated_on}
        self.progress.epoch({**place, **values, **self._shown, **on})
        if trainer.stopped:
            self.progress.note(f"the training ends: {trainer.stopped}")
        self._tell("on_epoch", record.step, values)

    def _look(self) -> Looked:
        """Return what the network does on the stimuli; rank 0 looks for all."""
        return ({}, {}) if self.sampling is None else self.sampling.look()

    def _snapshot(self, step: int, looked: Looked) -> None:
        """Write what was seen, and the parameters' norms."""
        if isinstance(self.writer, NullWriter) or self.sampling is None:
            return
        experiment = self.experiment
        params = parameter_measures(experiment.network, self._norms)
        epoch = max(step - 1, 0) // experiment.trainer.per_epoch
        arrays = {n: one.numpy() for n, one in looked[0].items() if n in self.sampling.layers}
        known = {name: row for name, row in looked[1].items() if name in self.writer.rows}
        learning: dict[str, dict[str, float]] = self._quality()
        for name, energy in self._energies().items():
            learning.setdefault(name, {})["off_diagonal_energy"] = energy
        self.writer.snapshot(step, epoch, arrays, params, learning, known)

    def _quality(self) -> dict[str, dict[str, float]]:
        """Return how good the estimate of each layer's gradient is, if the recipe asks for it."""
        draws = self.experiment.configuration.recipe.training.probe
        if draws == 0:
            return {}
        found = self.experiment.diagnose(draws=draws, thorough=False)
        return {name: layer.quality.numbers() for name, layer in found.layers.items()}

    def _energies(self) -> dict[str, float]:
        """Return what is left off the diagonal of each layer's correlations, if decorrelated."""
        decorrelate = self.experiment.engine.decorrelate
        found = {} if decorrelate is None else decorrelate.energy
        return {name: float(energy) for name, energy in found.items()}

    def _commit(self, lasting: bool = False) -> None:
        if not isinstance(self.writer, NullWriter):
            self.writer.commit(self.experiment.trainer.step, self.checkpoint(), lasting)
        self._saved = self.experiment.trainer.step

    def _summary(self) -> dict[str, Any]:
        experiment, configuration = self.experiment, self.experiment.configuration
        trainer = experiment.trainer
        seconds = self.seconds + time.perf_counter() - self._started
        train = experiment.evaluate(experiment.dataset.train)
        test = experiment.evaluate(experiment.dataset.evaluated)
        task = experiment.engine.task
        if task.headline != "loss":
            del train["loss"]
        costs = {} if ranks.rank() else self._costs()
        evaluated = experiment.dataset.evaluated_on
        unseen = experiment.dataset.open_test() if evaluated == "validation" else None
        control = None
        if configuration.control and self.pristine is not None:
            rate = configuration.recipe.training.learning_rate
            self.progress.note(
                f"training the control: frozen hidden layers, at the rule's own learning rate, "
                f"{rate:g}; another may be better for it"
            )
            control = frozen_hidden(configuration, experiment.dataset, self.pristine)
        return {
            "schema_version": 1,
            "run": str(self.writer.path),
            "model": configuration.model,
            "dataset": configuration.dataset,
            "estimator": configuration.estimator,
            **({"asks": configuration.asks.strip()} if configuration.asks else {}),
            "decorrelation": configuration.recipe.decorrelation.rule,
            "seed": configuration.seed,
            "epochs": trainer.epochs,
            **(
                {"stopped": trainer.stopped, "stopped_by": self._stopped_by}
                if trainer.stopped
                else {}
            ),
            **({"best_epoch": trainer.selection.epoch} if trainer.recipe.chooses else {}),
            **({"kept": "best"} if trainer.recipe.keep == "best" else {}),
            "budget": dict([trainer.recipe.budget]),
            "headline": task.headline,
            "better": task.better,
            **prefixed("train", train),
            **prefixed("test", test),
            "frozen_hidden_control": control,
            **({} if control is None else {"control_learning_rate": rate}),
            "silent": self._silent,
            "evaluated_on": evaluated,
            **({} if unseen is None else {"test": experiment.evaluate(unseen)}),
            "seconds": seconds,
            "steps_per_second": trainer.step / seconds,
            "ranks": ranks.size(),
            **({"outside": outside} if (outside := experiment.account.outside) else {}),
            **costs,
        }

    def _costs(self) -> dict[str, Any]:
        """Return what the training took, and what an example takes when it is done."""
        trainer, network = self.experiment.trainer, self.experiment.network
        inputs = self.experiment.dataset.evaluated.take(torch.as_tensor(self.probe.index)).inputs
        found = operations(network, placed(network, inputs, inputs)[0])
        return {
            "training_seconds": trainer.seconds,
            "forward_passes": trainer.passes,
            "peak_memory_bytes": max(self._memory, peak_memory() or 0) or None,
            "multiply_accumulates": found.multiply_accumulates,
            "synaptic_operations": found.synaptic_operations,
        }


def _budget(recipe: TrainingRecipe) -> str:
    """Return the budget for the title, if it is not in epochs."""
    if recipe.passes is not None:
        return f" · {recipe.passes} passes"
    return "" if recipe.seconds is None else f" · {recipe.seconds:g} s"
