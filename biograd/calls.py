"""What is called from Python: train, go on, open, take the network, diagnose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from biograd import experiment
from biograd.callbacks import Callback, Log, Watchers
from biograd.checking import Table
from biograd.configuration import Metrics, OwnParts
from biograd.diagnosis import Diagnosis, Reference
from biograd.display import ProgressChoice, shown
from biograd.engine import Engine, Outside
from biograd.runs.reader import Run, open_run
from biograd.substrate.kept import Reset
from biograd.substrate.return_values import Outputs

Model = str | nn.Module | Callable[..., nn.Module]
"""A module, its class or a function that makes it, or text that names code."""


def train(
    model: Model = "spiking",
    data: Any = "digits",
    *,
    arguments: Mapping[str, Any] | None = None,
    task: str | Mapping[str, Any] | None = None,
    loss: str | Callable[..., Any] | None = None,
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
    metrics: Metrics = (),
    callbacks: Callback | Sequence[Callback] = (),
    log: Log | None = None,
    allow_code: bool = False,
    progress: ProgressChoice = None,
) -> Run:
    """Train a network and return its run.

    Args:
        model: a shipped name, a path to a TOML file, or a module of yours, its class or a function
            that makes it, or text that names these, ``net.py:Net`` or ``package.module:Net``.  A
            class is called under the run's seed; a module is trained from its own weights on.
        data: a shipped name, a path (TOML, ``.npz``, HDF5, a folder), ``package.module:function``,
            or data of yours: ``(inputs, targets)``, a mapping of arrays, a torch Dataset or
            DataLoader, a function of seed and epoch, or any of these by split.
        arguments: of the class or function.
        task: what the targets ask for, a name or a table with ``name`` and settings; by default
            what they tell themselves.
        loss: one of the task's own by name, as "cross_entropy" or "squared_error" of classes, one
            of ``torch.nn.functional`` by name, as "smooth_l1_loss", or a function of outputs and
            targets that returns one value an example, as an object or as text,
            ``loss.py:function``.  Targets and metrics stay those of the task.
        estimator: how it learns; the recipe's own by default.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", CUDA if there is one.
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
            (see ``attach``): the name of a method, a function, or text that names one.
        outputs: what of the return value of a module of yours its outputs are (see ``attach``).
        metrics: beside the task's own, of every evaluation: names (``training.metrics``) and text
            that names code, or by a name of yours each a name, a function of outputs and targets
            that gives one number a row, ``[B]``, or an object with ``reset``,
            ``update(outputs, targets)`` and ``compute``, as those of torchmetrics, or its class.
        callbacks: are called at the start, steps, epochs and the end.
        log: a function of a stream, the step and figures, called for every row of the streams
            "train_step" and "epoch".
        allow_code: let a recipe's file name the code of a module (``module.source``).
        progress: None: a bar on a terminal, a line in a notebook, nothing in a pipe; True: there a
            line an epoch; False: nothing; or a function of what happens ("begin", "step", "epoch",
            "note") and its figures, by name.

    Raises:
        BiogradError: as ``biograd train`` would report it.
    """
    parts = {
        "arguments": None if arguments is None else {"module": {"arguments": dict(arguments)}},
        "sites": None if sites is None else {"module": {"sites": sites}},
        "outputs": None if outputs is None else {"module": {"outputs": asdict(outputs)}},
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
        loss=loss,
        reset=reset,
        metrics=metrics,
        allow_code=allow_code,
    )
    watchers = Watchers.of(callbacks, log)
    with shown(progress) as display:
        done = experiment.execute(request, display, watchers)
    return open_run(Path(done["run"]))


def _table(table: str, key: str, given: str | Mapping[str, Any] | None) -> Table | None:
    """Return a table of a recipe, of which a word alone is the key that matters most."""
    if given is None:
        return None
    return {table: {key: given} if isinstance(given, str) else dict(given)}


def resume(
    path: str | Path,
    epochs: int | None = None,
    network: Model | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    metrics: Metrics = (),
    callbacks: Callback | Sequence[Callback] = (),
    log: Log | None = None,
    device: str | None = None,
    progress: ProgressChoice = None,
) -> Run:
    """Go on with a run from its last commit, to ``epochs`` in all if given, and return it.

    Args:
        network: your own module, its class or text that names it, if the run trained one; its
            weights are replaced.
        data: your own data, if the run learned from arrays, Datasets or a function; or where its
            files are now.
        loss, reset, outputs: your own, if the run has any; what a name says it finds itself.
        metrics, callbacks, log, progress: as in ``train``.
        device: another of the run's kind; None: the run's.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
        RecipeError: the code that is given is another than the run's.
    """
    parts = OwnParts.of(network, data, loss, reset, outputs, metrics)
    watchers = Watchers.of(callbacks, log)
    with shown(progress) as display:
        done = experiment.proceed(Path(path), epochs, display, parts, watchers, device)
    return open_run(Path(done["run"]))


def load(path: str | Path) -> Run:
    """Open a run file for analysis.

    Raises:
        RunFileError: missing, damaged, from a newer version, or not a run file.
    """
    return open_run(Path(path))


def trained(
    run: Run,
    network: Model | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    device: str | None = None,
) -> tuple[nn.Module, Engine]:
    """Return the network of a run as it was at the last checkpoint, and its engine.

    Args:
        network, data, loss, reset, outputs: as in ``resume``.
        device: None: that of the run, or the CPU where there is none such.
    """
    parts = OwnParts.of(network, data, loss, reset, outputs)
    found = experiment.restored(run, parts, "trained", device=device)
    return found.network, found.engine


def diagnose(
    run: Run,
    network: Model | None = None,
    *,
    data: Any = None,
    step: int | None = None,
    examples: int = 64,
    draws: int = 16,
    reference: Reference = "auto",
    loss: str | Callable[..., Any] | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    device: str | None = None,
) -> Diagnosis:
    """Return how good the gradient estimate of a run is, and what keeps it from learning.

    Args:
        network, data, loss, reset, outputs: as in ``resume``.
        step: of a checkpoint; 0: before the training; None: the last one.
        examples: of the training data, the groups of the task in turn.
        draws: how often the gradient is estimated.
        reference: see ``diagnosis.probe``.
        device: None: that of the run, or the CPU where there is none such.

    Raises:
        RecipeError: no checkpoint of that step, fewer than two draws, or no such reference.
    """
    parts = OwnParts.of(network, data, loss, reset, outputs)
    found = experiment.restored(run, parts, "diagnose", step, device)
    try:
        return found.diagnose(examples, draws=draws, reference=reference)
    finally:
        found.engine.detach()
