"""A training from request to run file, and back: start, interrupt, resume.

::

    request -> configuration -> data, network, engine, trainer -> run file -> summary

The configuration is written into the run file before the first step; a run is resumed from the
file alone.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from biograd import data, estimators, networks, recipes
from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.errors import BiogradError, RecipeError, RunFileError
from biograd.recipes import DatasetRecipe, ModelRecipe
from biograd.runs.environment import environment
from biograd.runs.reader import Run, open_run
from biograd.runs.writer import LayerInfo, Probe, RunWriter
from biograd.training import StepRecord, Trainer, activity, evaluate

PROBES = 200


class Interrupted(BiogradError):
    """The run was asked to stop; everything up to the last step is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Progress(Protocol):
    """Whoever shows how a run goes on."""

    def begin(self, total_steps: int, title: str) -> None:
        """Start; ``total_steps`` are still to do."""

    def step(self, record: dict[str, Any]) -> None:
        """Show one step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show one epoch."""

    def note(self, text: str) -> None:
        """Show a line of text."""


class Silent:
    """Shows nothing."""

    def begin(self, total_steps: int, title: str) -> None:
        """Show nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for; None means the recipe's value."""

    model: str | nn.Module = "spiking"
    dataset: str = "digits"
    estimator: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    force: bool = False
    assignments: tuple[str, ...] = ()
    data_dir: Path | None = None
    offline: bool = False
    control: bool = False


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Everything that decides a run; written into its file."""

    model: str
    recipe: ModelRecipe
    dataset: str
    data: DatasetRecipe
    estimator: str
    settings: dict[str, Any]
    seed: int
    device: str
    data_dir: str | None = None
    offline: bool = False
    control: bool = False

    def table(self) -> dict[str, Any]:
        """Return the configuration as a table that ``of`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, table: Mapping[str, Any], where: object) -> Configuration:
        """Return the configuration of a run file.

        Raises:
            RunFileError: the table is not one.
        """
        try:
            return recipes.construct(cls, table, where)
        except RecipeError as error:
            raise RunFileError(f"{error} (the run's configuration)") from error


def configure(request: Request) -> Configuration:
    """Return the configuration of a request: recipes read, overrides applied, all checked.

    Assignments ``dataset.KEY=VALUE`` go to the dataset recipe, the others to the model recipe.

    Raises:
        RecipeError: one line with file, key and nearest valid word.
    """
    to_data = [a.removeprefix("dataset.") for a in request.assignments if a.startswith("dataset.")]
    to_model = [a for a in request.assignments if not a.startswith("dataset.")]
    dataset = recipes.load_dataset(request.dataset, to_data)
    budget = {"epochs": request.epochs, "batch_size": request.batch_size}
    over: dict[str, Any] = {"training": {k: v for k, v in budget.items() if v is not None}}
    if request.estimator is not None:
        over["estimator"] = request.estimator
    name = Path(request.dataset).stem
    if isinstance(request.model, nn.Module):
        table = recipes.override(recipes.merge({}, over), to_model)
        recipe = recipes.construct(ModelRecipe, table, "--set")
        model = type(request.model).__name__
    else:
        recipe = recipes.load_model(request.model, name, over, to_model)
        model = Path(request.model).stem
    settings = recipe.estimators.get(recipe.estimator, {})
    estimators.make(recipe.estimator, settings, request.model)
    return Configuration(
        model=model,
        recipe=recipe,
        dataset=name,
        data=dataset,
        estimator=recipe.estimator,
        settings=settings,
        seed=request.seed,
        device=_device(request.device),
        data_dir=None if request.data_dir is None else str(request.data_dir),
        offline=request.offline,
        control=request.control,
    )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: no CUDA device is available here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: (known: auto, cpu, cuda)")
    return name


class Experiment:
    """The parts of one run, assembled from its configuration."""

    def __init__(
        self,
        configuration: Configuration,
        dataset: data.Dataset,
        network: nn.Module | None = None,
        estimator: str | None = None,
    ) -> None:
        self.configuration, self.dataset = configuration, dataset
        recipe = configuration.recipe
        name = estimator or configuration.estimator
        settings = (
            configuration.settings
            if name == configuration.estimator
            else (recipe.estimators.get(name, {}))
        )
        built = networks.build(
            network if network is not None else recipe,
            dataset.shape,
            dataset.classes,
            configuration.seed,
        )
        self.network = built.to(configuration.device)
        self.engine = attach(
            self.network,
            estimators.make(name, settings, configuration.model),
            _decorrelation(recipe),
            loss=recipe.training.loss,
            seed=configuration.seed,
        )
        self.trainer = Trainer(self.engine, recipe.training, dataset.train, configuration.seed)

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of the modules whose activity goes into the run file."""
        return getattr(self.network, "populations", ()) or self.engine.hidden


def _decorrelation(recipe: ModelRecipe) -> Decorrelation | None:
    settings = recipe.decorrelation
    if settings.rule == "off":
        return None
    return Decorrelation(
        settings.rule, settings.rate, settings.kappa, settings.sample, settings.centre
    )


class Recording:
    """One run under way: trains, measures, writes, commits."""

    def __init__(
        self, experiment: Experiment, writer: RunWriter, probe: Probe, progress: Progress
    ) -> None:
        self.experiment, self.writer, self.progress = experiment, writer, progress
        self.probe = probe
        self.seconds = 0.0
        self._started = time.perf_counter()
        self._sums = [0.0, 0.0, 0]
        self._norms: dict[str, torch.Tensor] = {}

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the trainer's checkpoint, with the running sums of the epoch."""
        tensors, meta = self.experiment.trainer.checkpoint()
        tensors |= {f"snapshot.{name}": value for name, value in self._norms.items()}
        elapsed = self.seconds + time.perf_counter() - self._started
        return tensors, meta | {"sums": self._sums, "seconds": elapsed}

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.experiment.trainer.restore(tensors, meta)
        self._sums, self.seconds = list(meta["sums"]), float(meta["seconds"])
        self._norms = {
            name.removeprefix("snapshot."): value
            for name, value in tensors.items()
            if name.startswith("snapshot.")
        }

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget, pack the file and return the summary."""
        experiment, trainer = self.experiment, self.experiment.trainer
        configuration = experiment.configuration
        title = f"{configuration.model} · {configuration.dataset} · {configuration.estimator}"
        self.progress.begin(trainer.total - trainer.step, title)
        try:
            with _graceful() as stop:
                if trainer.step == 0:
                    self._snapshot(0)
                    self._commit()
                for record in trainer.steps():
                    self._record(record)
                    if stop:
                        self._commit()
                        path = self.writer.path
                        raise Interrupted(
                            f"interrupted after step {record.step}, all of it is "
                            f"saved; go on with: biograd resume {path}",
                            stop[0],
                        )
            summary = self._summary()
            self.writer.scalars(
                "final",
                trainer.step,
                configuration.recipe.training.epochs,
                {k: v for k, v in summary.items() if isinstance(v, float)},
            )
            self._commit()
            self.writer.summary(summary)
            self.writer.close("completed")
        except Interrupted:
            self.writer.abandon("interrupted")
            raise
        except BaseException:
            self.writer.abandon("crashed")
            raise
        finally:
            experiment.engine.detach()
        return summary

    def _record(self, record: StepRecord) -> None:
        values = {
            "loss": record.loss,
            "accuracy": record.accuracy,
            "informative": record.informative,
            "learning_rate": record.learning_rate,
        }
        self.writer.scalars("train_step", record.step, record.epoch, values)
        self.progress.step(dataclasses.asdict(record))
        self._sums = [
            self._sums[0] + record.loss,
            self._sums[1] + record.accuracy,
            self._sums[2] + 1,
        ]
        if not record.last and record.step in log_spaced(self.experiment.trainer.per_epoch):
            self._snapshot(record.step)
        if record.last:
            self._end_epoch(record)

    def _end_epoch(self, record: StepRecord) -> None:
        trainer, configuration = self.experiment.trainer, self.experiment.configuration
        accuracy, loss = evaluate(self.experiment.engine, self.experiment.dataset.test)
        count = self._sums[2]
        values = {
            "train_loss": self._sums[0] / count,
            "train_accuracy": self._sums[1] / count,
            "test_accuracy": accuracy,
            "test_loss": loss,
        }
        epoch = record.epoch + 1
        epochs = configuration.recipe.training.epochs
        if epochs <= 20 or epoch in log_spaced(epochs) or record.step == trainer.total:
            values |= self._snapshot(record.step)
        self.writer.scalars("epoch", record.step, record.epoch, values)
        self._sums = [0.0, 0.0, 0]
        self._commit()
        self.progress.epoch({"epoch": epoch, "epochs": epochs, "step": record.step, **values})

    def _snapshot(self, step: int) -> dict[str, float]:
        """Record the probes' activity and the parameters' norms; return the summary of both."""
        experiment = self.experiment
        inputs = experiment.dataset.test.inputs[torch.as_tensor(self.probe.index)]
        found = activity(experiment.network, inputs, experiment.watched)
        params = {}
        for name, value in experiment.network.named_parameters():
            now = value.detach().cpu().clone()
            before = self._norms.get(name, now)
            params[name] = {
                "norm": float(now.norm()),
                "update_norm": float((now - before).norm()),
                "sparsity": float((now == 0).float().mean()),
            }
            self._norms[name] = now
        epoch = step // experiment.trainer.per_epoch
        arrays = {name: value.numpy() for name, value in found.items()}
        self.writer.snapshot(step, epoch, arrays, params, None)
        return firing(found, getattr(experiment.network, "spiking", False))

    def _commit(self) -> None:
        self.writer.commit(self.experiment.trainer.step, self.checkpoint())

    def _summary(self) -> dict[str, Any]:
        experiment, configuration = self.experiment, self.experiment.configuration
        seconds = self.seconds + time.perf_counter() - self._started
        train_accuracy, _ = evaluate(experiment.engine, experiment.dataset.train)
        test_accuracy, test_loss = evaluate(experiment.engine, experiment.dataset.test)
        control = None
        if configuration.control:
            self.progress.note("training the control: frozen hidden layers")
            control = frozen_hidden(configuration, experiment.dataset)
        return {
            "schema_version": 1,
            "run": str(self.writer.path),
            "model": configuration.model,
            "dataset": configuration.dataset,
            "estimator": configuration.estimator,
            "decorrelation": configuration.recipe.decorrelation.rule,
            "seed": configuration.seed,
            "epochs": configuration.recipe.training.epochs,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "frozen_hidden_control": control,
            "seconds": seconds,
            "steps_per_second": experiment.trainer.step / seconds,
        }


def firing(found: Mapping[str, torch.Tensor], spiking: bool) -> dict[str, float]:
    """Return spikes per neuron and trial (spiking networks) and the share of silent units.

    A unit is silent if it is inactive for every probe.
    """
    silent = torch.cat([(v == 0).flatten(0, -2).all(0) for v in found.values()]).float().mean()
    values = {"silent_fraction": float(silent)}
    if spiking:
        counts = torch.cat([value.sum(1).mean(0) for value in found.values()])
        values["spikes_per_neuron"] = float(counts.mean())
    return values


def frozen_hidden(configuration: Configuration, dataset: data.Dataset) -> float:
    """Return the test accuracy of the control: the same run, with only the readout trained."""
    experiment = Experiment(configuration, dataset, estimator="frozen_hidden")
    for _record in experiment.trainer.steps():
        pass
    accuracy, _loss = evaluate(experiment.engine, dataset.test)
    experiment.engine.detach()
    return accuracy


def log_spaced(limit: int) -> set[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to ``limit``.

    >>> sorted(log_spaced(30))
    [1, 2, 5, 10, 20]
    """
    found, scale = set(), 1
    while scale <= limit:
        found |= {scale * factor for factor in (1, 2, 5) if scale * factor <= limit}
        scale *= 10
    return found


@contextmanager
def _graceful() -> Iterator[list[int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one kills.

    Why: an interrupt inside the optimiser would leave half a step in the weights.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)

    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def execute(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Train as requested, write the run file and return the summary.

    Raises:
        RecipeError: the request is not valid, or the run file exists (use ``force``).
        DataError: the data cannot be had.
        Interrupted: the run was asked to stop; it can be resumed.
    """
    configuration = configure(request)
    path = request.out or _default_path(configuration)
    RunWriter.check(path, force=request.force)
    dataset = _load(configuration)
    network = request.model if isinstance(request.model, nn.Module) else None
    experiment = Experiment(configuration, dataset, network)
    probe = make_probe(dataset)
    writer = RunWriter(
        path,
        config=configuration.table(),
        environment=environment(configuration.device),
        attributes=_attributes(configuration, dataset),
        probe=probe,
        layers=_layers(experiment, dataset, probe),
        force=request.force,
    )
    return Recording(experiment, writer, probe, progress or Silent()).run()


def _load(configuration: Configuration) -> data.Dataset:
    folder = None if configuration.data_dir is None else Path(configuration.data_dir)
    return data.load(
        configuration.data,
        name=configuration.dataset,
        data_dir=folder,
        offline=configuration.offline,
    )


def make_probe(dataset: data.Dataset) -> Probe:
    """Return the fixed stimuli of all snapshots: class-balanced, from the evaluated split."""
    index = data.class_balanced(dataset.test, PROBES, seed=0)
    return Probe(
        index=index.numpy(), label=dataset.test.targets[index].numpy(), split=dataset.evaluated_on
    )


def _attributes(configuration: Configuration, dataset: data.Dataset) -> dict[str, Any]:
    return {
        "seed": configuration.seed,
        "device": configuration.device,
        "dataset": configuration.dataset,
        "dataset_sha256": dataset.sha256,
        "rule": configuration.estimator,
        "model": configuration.model,
        "model_kind": "snn" if configuration.recipe.network.kind == "spiking" else "ann",
    }


def _layers(experiment: Experiment, dataset: data.Dataset, probe: Probe) -> dict[str, LayerInfo]:
    inputs = dataset.test.inputs[torch.as_tensor(probe.index[:2])]
    found = activity(experiment.network, inputs, experiment.watched)
    spiking = getattr(experiment.network, "spiking", False)
    encoding = getattr(experiment.network, "encoding", None)
    neuron = dataclasses.asdict(experiment.configuration.recipe.neuron) if spiking else {}
    return {
        name: LayerInfo(
            kind="spiking" if spiking else "rate",
            n_units=value.shape[-1],
            dt_ms=encoding.dt_ms if spiking and encoding else 0.0,
            n_steps=value.shape[1] if spiking else 0,
            neuron_params=neuron,
        )
        for name, value in found.items()
    }


def _default_path(configuration: Configuration) -> Path:
    parts = (configuration.model, configuration.dataset, configuration.estimator)
    return Path("runs") / f"{'-'.join(parts)}-seed{configuration.seed}.h5"


def proceed(
    path: Path, epochs: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Go on with a run from its last commit, to ``epochs`` in all if given; return its summary.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
    """
    with open_run(path) as run:
        table = run.config
    configuration = Configuration.of(table, path)
    if epochs is not None:
        training = dataclasses.replace(configuration.recipe.training, epochs=epochs)
        recipe = dataclasses.replace(configuration.recipe, training=training)
        configuration = dataclasses.replace(configuration, recipe=recipe)
    dataset = _load(configuration)
    experiment = Experiment(configuration, dataset)
    writer, (tensors, meta) = RunWriter.resume(path, config=configuration.table())
    recording = Recording(experiment, writer, make_probe(dataset), progress or Silent())
    recording.restore(tensors, meta)
    return recording.run()


def train(
    model: str | nn.Module = "spiking",
    dataset: str = "digits",
    *,
    estimator: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    path: str | Path | None = None,
    force: bool = False,
    settings: Sequence[str] = (),
    data_dir: str | Path | None = None,
    offline: bool = False,
    control: bool = False,
) -> Run:
    """Train a network and return its run.

    Args:
        model: a shipped name, a path to a TOML file, or a module of yours.
        dataset: a shipped name or a path to a TOML file.
        estimator: how it learns; the recipe's own by default.
        path: the run file; ``runs/MODEL-DATASET-ESTIMATOR-seedN.h5`` by default.
        settings: ``KEY=VALUE`` overrides of the recipes, as ``--set``.
        control: also train the ``frozen_hidden`` control.

    Raises:
        BiogradError: as ``biograd train`` would report it.
    """
    request = Request(
        model=model,
        dataset=dataset,
        estimator=estimator,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=None if path is None else Path(path),
        force=force,
        assignments=tuple(settings),
        data_dir=None if data_dir is None else Path(data_dir),
        offline=offline,
        control=control,
    )
    return open_run(Path(execute(request)["run"]))


def resume(path: str | Path, epochs: int | None = None) -> Run:
    """Go on with a run from its last commit, to ``epochs`` in all if given, and return it.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
    """
    return open_run(Path(proceed(Path(path), epochs)["run"]))


def load(path: str | Path) -> Run:
    """Open a run file for analysis.

    Raises:
        RunFileError: missing, damaged, from a newer version, or not a run file.
    """
    return open_run(Path(path))


def trained(run: Run) -> tuple[nn.Module, Engine]:
    """Return the network of a run as it was at the last checkpoint, and its engine."""
    configuration = Configuration.of(run.config, run.path)
    experiment = Experiment(configuration, _load(configuration))
    experiment.trainer.restore(*run.checkpoint())
    return experiment.network, experiment.engine
