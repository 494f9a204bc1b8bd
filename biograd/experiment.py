"""A training from request to run file, and back: start, resume, open.

::

    request -> configuration -> data, network, engine, trainer -> run file -> summary

The configuration is written into the run file before the first step; a run is resumed from the
file alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from biograd import data
from biograd.configuration import Configuration, Request, check_device, configure
from biograd.diagnosis import Diagnosis, Reference
from biograd.engine import Engine
from biograd.errors import DataError, RecipeError
from biograd.recording import Experiment, Interrupted, Progress, Recording, Silent
from biograd.runs.environment import environment
from biograd.runs.layout import LayerInfo, Probe
from biograd.runs.reader import Run, open_run
from biograd.runs.writer import RunWriter
from biograd.training import activity

__all__ = [
    "Configuration",
    "Experiment",
    "Interrupted",
    "Progress",
    "Request",
    "configure",
    "diagnose",
    "execute",
    "load",
    "proceed",
    "resume",
    "train",
    "trained",
]

PROBES = 200


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
    pristine = deepcopy(network) if configuration.control else None
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
    recording = Recording(experiment, writer, probe, progress or Silent())
    recording.pristine = pristine
    return recording.run()


def _load(configuration: Configuration) -> data.Dataset:
    check_device(configuration.device, "the run was on cuda")
    folder = None if configuration.data_dir is None else Path(configuration.data_dir)
    return data.load(
        configuration.data,
        name=configuration.dataset,
        data_dir=folder,
        offline=configuration.offline,
        seed=configuration.seed,
    )


def make_probe(dataset: data.Dataset) -> Probe:
    """Return the fixed stimuli of all snapshots: class-balanced, from the evaluated split."""
    index = data.class_balanced(dataset.test, PROBES, seed=0)
    return Probe(
        index=index.numpy(), label=dataset.test.targets[index].numpy(), split=dataset.evaluated_on
    )


def _attributes(configuration: Configuration, dataset: data.Dataset) -> dict[str, Any]:
    kind = configuration.recipe.network.kind
    return {
        "seed": configuration.seed,
        "device": configuration.device,
        "dataset": configuration.dataset,
        "dataset_sha256": dataset.sha256,
        "rule": configuration.estimator,
        "model": configuration.model,
        "model_kind": "snn" if kind in ("spiking", "circuit") else "ann",
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
    path: Path,
    epochs: int | None = None,
    progress: Progress | None = None,
    network: nn.Module | None = None,
) -> dict[str, Any]:
    """Go on with a run from its last commit, to ``epochs`` in all if given; return its summary.

    Args:
        network: the user's own module, if the run trained one; its weights are replaced.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
    """
    with open_run(path) as run:
        table, digest = run.config, run.attributes["dataset_sha256"]
        _tensors, meta = run.checkpoint()
    configuration = Configuration.of(table, path)
    if epochs is not None:
        training = dataclasses.replace(configuration.recipe.training, epochs=epochs)
        recipe = dataclasses.replace(configuration.recipe, training=training)
        if training.schedule != "constant" and progress is not None:
            progress.note("the learning rate now follows the schedule of the longer run")
        configuration = dataclasses.replace(configuration, recipe=recipe)
    _need_module(configuration, network, path)
    dataset = _load(configuration)
    if dataset.sha256 != digest:
        raise DataError(
            f"{path}: the run learned from other {configuration.dataset} data (SHA-256 "
            f"{digest[:12]}…, now {dataset.sha256[:12]}…): give back the data of then"
        )
    experiment = Experiment(configuration, dataset, network)
    done = -(-int(meta["step"]) // experiment.trainer.per_epoch)
    if configuration.recipe.training.epochs < done:
        experiment.engine.detach()
        raise RecipeError(
            f"{path}: --epochs {configuration.recipe.training.epochs}: the run is in epoch {done} "
            "already; give at least as many"
        )
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


def _need_module(configuration: Configuration, network: nn.Module | None, path: object) -> None:
    if configuration.module and network is None:
        raise RecipeError(
            f"{path}: the run trained a module of yours ({configuration.model}), which no recipe "
            "can build: give it to biograd.resume(path, network=...)"
        )


def resume(path: str | Path, epochs: int | None = None, network: nn.Module | None = None) -> Run:
    """Go on with a run from its last commit, to ``epochs`` in all if given, and return it.

    Args:
        network: your own module, if the run trained one; its weights are replaced.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
    """
    return open_run(Path(proceed(Path(path), epochs, network=network)["run"]))


def load(path: str | Path) -> Run:
    """Open a run file for analysis.

    Raises:
        RunFileError: missing, damaged, from a newer version, or not a run file.
    """
    return open_run(Path(path))


def trained(run: Run, network: nn.Module | None = None) -> tuple[nn.Module, Engine]:
    """Return the network of a run as it was at the last checkpoint, and its engine.

    Args:
        network: your own module, if the run trained one; its weights are replaced.
    """
    experiment = _restored(run, network)
    return experiment.network, experiment.engine


def _restored(run: Run, network: nn.Module | None = None, step: int | None = None) -> Experiment:
    """Return the experiment of a run at a checkpoint, the last one if ``step`` is None."""
    configuration = Configuration.of(run.config, run.path)
    _need_module(configuration, network, run.path)
    state = None if step == 0 else run.checkpoint(step)  # the beginning follows from the seed
    experiment = Experiment(configuration, _load(configuration), network)
    if state is not None:
        experiment.trainer.restore(*state)
    return experiment


def diagnose(
    run: Run,
    network: nn.Module | None = None,
    *,
    step: int | None = None,
    examples: int = 64,
    draws: int = 16,
    reference: Reference = "auto",
) -> Diagnosis:
    """Return how good the gradient estimate of a run is, and what keeps it from learning.

    Args:
        network: your own module, if the run trained one; its weights are replaced.
        step: of a checkpoint; 0: before the training; None: the last one.
        examples: of the training data, balanced between the classes.
        draws: how often the gradient is estimated.
        reference: see ``diagnosis.probe``.

    Raises:
        RunFileError: there is no checkpoint of that step.
        RecipeError: fewer than two draws, or no such reference.
    """
    experiment = _restored(run, network, step)
    try:
        return experiment.diagnose(examples, draws=draws, reference=reference)
    finally:
        experiment.engine.detach()
