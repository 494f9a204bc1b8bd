"""What is called from Python: train, go on, open, take the network, diagnose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from biograd import experiment
from biograd.callbacks import Callback, Log, Watchers
from biograd.checking import Table
from biograd.diagnosis import Diagnosis, Reference
from biograd.engine import Engine, Outside
from biograd.errors import CapabilityError
from biograd.runs.reader import Run, open_run
from biograd.substrate.kept import Reset, ResetBefore
from biograd.substrate.return_values import Outputs


def train(
    model: str | nn.Module = "spiking",
    data: Any = "digits",
    *,
    task: str | Mapping[str, Any] | None = None,
    loss: str | None = None,
    estimator: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    path: str | Path | None = None,
    force: bool = False,
    settings: Sequence[str] = (),
    outside: Outside | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    control: bool = False,
    sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    decorrelate: str | Mapping[str, Any] | None = None,
    local: str | Mapping[str, Any] | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    metrics: Sequence[str] | Mapping[str, Any] = (),
    callbacks: Callback | Sequence[Callback] = (),
    log: Log | None = None,
) -> Run:
    """Train a network and return its run.

    Args:
        model: a shipped name, a path to a TOML file, or a module of yours.
        data: a shipped name, a path (TOML, ``.npz``, HDF5, a folder), ``package.module:function``,
            or data of yours: ``(inputs, targets)``, a mapping of arrays, a torch Dataset or
            DataLoader, a function of seed and epoch, or any of these by split.
        task: what the targets ask for, a name or a table with ``name`` and settings; by default
            what they tell themselves.
        loss: of a task of classes, "cross_entropy" or "squared_error"; a function of your own
            goes to ``attach``.
        estimator: how it learns; the recipe's own by default.
        path: the run file; ``runs/MODEL-DATASET-ESTIMATOR-seedN.h5`` by default.
        settings: ``KEY=VALUE`` overrides of the recipes, as ``--set``.
        outside: what becomes of parameters that the rule does not credit (``biograd.attach``);
            ``training.outside`` by default.
        control: also train the ``frozen_hidden`` control.
        sites: layers of a module of yours that are sites, by name, or by site those that share a
            current; by default all layers with weights.
        decorrelate: a rule of decorrelation, or the recipe's table of it.
        local: a local loss, or the recipe's table of it.
        reset: puts a module of yours that keeps a state from pass to pass back before every one
            (see ``attach``).
        outputs: what of the return value of a module of yours its outputs are (see ``attach``).
        metrics: beside the task's own, of every evaluation: names (``training.metrics``), or by a
            name of yours each a name, a function of outputs and targets that gives one number a
            row, ``[B]``, or an object with ``reset``, ``update(outputs, targets)`` and
            ``compute``, as those of torchmetrics.
        callbacks: are called at the start, steps, epochs and the end.
        log: a function of a stream, the step and figures, called for every row of the streams
            "train_step" and "epoch".

    Raises:
        BiogradError: as ``biograd train`` would report it.
    """
    parts = {
        "loss": None if loss is None else {"training": {"loss": loss}},
        "decorrelate": _table("decorrelation", "rule", decorrelate),
        "local": _table("local", "loss", local),
    }
    request = experiment.TrainingRequest(
        model=model,
        **experiment.asked(data),
        task=task,
        estimator=estimator,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=None if path is None else Path(path),
        force=force,
        assignments=(*settings, *([] if outside is None else [f"training.outside={outside}"])),
        data_dir=None if data_dir is None else Path(data_dir),
        offline=offline,
        control=control,
        laid={name: table for name, table in parts.items() if table is not None},
        sites=sites,
    )
    watchers = Watchers.of(callbacks, log, metrics)
    with _put_back(model, reset), _formed(model, outputs):
        return open_run(Path(experiment.execute(request, watchers=watchers)["run"]))


@contextmanager
def _put_back(network: object, reset: Reset | None) -> Iterator[None]:
    """Reset a module before every pass."""
    if reset is None:
        yield
        return
    if not isinstance(network, nn.Module):
        raise CapabilityError("reset: only for a module of yours: recipes' networks keep no state")
    handle = network.register_forward_pre_hook(ResetBefore(network, reset))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _formed(network: object, form: Outputs | None) -> Iterator[None]:
    """Let a module return its outputs alone."""
    if form is None:
        yield
        return
    if not isinstance(network, nn.Module):
        raise CapabilityError("outputs: only for a module of yours: recipes' return nothing else")
    handle = network.register_forward_hook(lambda _module, _inputs, value: form(value))
    try:
        yield
    finally:
        handle.remove()


def _table(table: str, key: str, given: str | Mapping[str, Any] | None) -> Table | None:
    """Return a table of a recipe, of which a word alone is the key that matters most."""
    if given is None:
        return None
    return {table: {key: given} if isinstance(given, str) else dict(given)}


def resume(
    path: str | Path,
    epochs: int | None = None,
    network: nn.Module | None = None,
    data: Any = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    metrics: Sequence[str] | Mapping[str, Any] = (),
    callbacks: Callback | Sequence[Callback] = (),
    log: Log | None = None,
) -> Run:
    """Go on with a run from its last commit, to ``epochs`` in all if given, and return it.

    Args:
        network: your own module, if the run trained one; its weights are replaced.
        data: your own data, if the run learned from arrays, Datasets or a function; or where its
            files are now.
        reset, outputs, metrics, callbacks, log: as in ``train``.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
    """
    watchers = Watchers.of(callbacks, log, metrics)
    with _put_back(network, reset), _formed(network, outputs):
        done = experiment.proceed(Path(path), epochs, network=network, own=data, watchers=watchers)
    return open_run(Path(done["run"]))


def load(path: str | Path) -> Run:
    """Open a run file for analysis.

    Raises:
        RunFileError: missing, damaged, from a newer version, or not a run file.
    """
    return open_run(Path(path))


def trained(
    run: Run, network: nn.Module | None = None, data: Any = None
) -> tuple[nn.Module, Engine]:
    """Return the network of a run as it was at the last checkpoint, and its engine.

    Args:
        network: your own module, if the run trained one; its weights are replaced.
        data: your own data, if the run learned from any that are in no file.
    """
    found = experiment.restored(run, network, data, "trained")
    return found.network, found.engine


def diagnose(
    run: Run,
    network: nn.Module | None = None,
    *,
    data: Any = None,
    step: int | None = None,
    examples: int = 64,
    draws: int = 16,
    reference: Reference = "auto",
    reset: Reset | None = None,
    outputs: Outputs | None = None,
) -> Diagnosis:
    """Return how good the gradient estimate of a run is, and what keeps it from learning.

    Args:
        network: your own module, if the run trained one; its weights are replaced.
        data: your own data, if the run learned from any that are in no file.
        step: of a checkpoint; 0: before the training; None: the last one.
        examples: of the training data, the groups of the task in turn.
        draws: how often the gradient is estimated.
        reference: see ``diagnosis.probe``.
        reset, outputs: as in ``train``.

    Raises:
        RecipeError: no checkpoint of that step, fewer than two draws, or no such reference.
    """
    with _put_back(network, reset), _formed(network, outputs):
        found = experiment.restored(run, network, data, "diagnose", step)
        try:
            return found.diagnose(examples, draws=draws, reference=reference)
        finally:
            found.engine.detach()
