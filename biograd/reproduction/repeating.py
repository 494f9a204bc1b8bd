"""The same training once more, from a run file alone."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biograd import user_code
from biograd.callbacks import StopAt, Watchers
from biograd.calls import Model
from biograd.configuration import Configuration, Metrics, OwnParts, matching, on_some_device
from biograd.display import ProgressChoice, shown
from biograd.errors import RecipeError
from biograd.experiment import begin, go_on
from biograd.progress import Progress
from biograd.recording import Interrupted
from biograd.reproduction.side_by_side import compared
from biograd.reproduction.verdict import Change, Reproduction
from biograd.runs.reader import Run, open_run
from biograd.runs.storage import RunPaths
from biograd.substrate.kept import Reset
from biograd.substrate.return_values import Outputs


def reproduce(
    path: str | Path,
    network: Model | None = None,
    *,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
    metrics: Metrics = (),
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    offline: bool | None = None,
    device: str | None = None,
    progress: ProgressChoice = None,
) -> Reproduction:
    """Repeat a run from its file alone and compare what comes out with what is in the file.

    A run that did not come to its end is repeated up to its last commit; one that was trained on
    with other epochs is repeated part by part, each with its own schedule.  A run that was
    interrupted and resumed is the same as one that was not.

    Args:
        path: of a run file, or of its parts.
        network: your own module as it was before the training, if the run trained one; it is
            trained.  Of one that a class made, the class, or text that names it.
        data: your own data, if the run learned from any that are in no file; or where its files
            are now.
        loss, reset, outputs: your own, if the run has any.
        metrics: as in ``biograd.train``; without those of yours that the run reports, their columns
            count as differences.
        out: where to keep the repeated run; None: it is deleted.
        data_dir: of the data; None: as the run had it.
        offline: do not download; None: as the run had it.
        device: None: that of the run, or the CPU where there is none such.
        progress: as in ``biograd.train``.

    Raises:
        RunFileError: there is no such run, it cannot be read, or has no commit.
        RecipeError: the run's budget is a time; or its own module is missing.
        DataError: the data cannot be had, or are others.
    """
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(shown(progress))
        run = stack.enter_context(open_run(path))
        configuration = _configuration(run, data_dir, offline, device)
        parts = OwnParts.of(network, data, loss, reset, outputs, metrics)
        changed = matching(configuration, parts, run.path, "reproduce")
        configuration = dataclasses.replace(configuration, code=parts.known)
        if not run.attribute("dataset_sha256"):
            raise RecipeError(f"{run.path}: its data do not repeat, nor does the run")
        configuration = configuration.given(data)
        step = run.last_step
        if out is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="biograd-"))
            target = Path(folder) / "repeated.h5"
        else:
            target = RunPaths.of(out).file
            if target.exists() or RunPaths.of(out).parts.exists():
                raise RecipeError(f"{target}: exists; give another --out")
        try:
            with user_code.named("the module"):
                _repeat(run, configuration, target, step, display, parts)
        except Interrupted as error:
            if out is not None:
                raise
            message = f"interrupted: nothing of the repetition of {run.path} is kept"
            raise Interrupted(message, error.exit_code - 128) from error
        with open_run(target) as repeated:
            found = compared(run, repeated, step, configuration.device)
        return dataclasses.replace(
            found,
            repeated=None if out is None else target,
            notes=_notes(run, configuration, step),
            changes=(*found.changes, *(Change("code", *_sides(one)) for one in changed)),
        )


def _configuration(
    run: Run, data_dir: str | Path | None, offline: bool | None, device: str | None
) -> Configuration:
    """Return how the run is repeated here.

    Raises:
        RecipeError: nothing says how far it went.
    """
    configuration = Configuration.of(run.config, run.path)
    seconds = configuration.recipe.training.seconds
    if seconds is not None:
        raise RecipeError(
            f"{run.path}: its budget is training.seconds = {seconds}: how far a training comes in "
            "that time does not repeat, nor do its numbers; train with training.passes"
        )
    control = run.summary.get("frozen_hidden_control", 0) is not None
    return dataclasses.replace(
        on_some_device(device, configuration, run.path),
        data_dir=configuration.data_dir if data_dir is None else str(data_dir),
        offline=configuration.offline if offline is None else offline,
        control=configuration.control and control,  # a module's is not trained after a resumption
    )


def _repeat(
    run: Run,
    configuration: Configuration,
    target: Path,
    step: int,
    progress: Progress,
    parts: OwnParts,
) -> None:
    """Train as the run did, with every budget that it had, up to ``step``."""
    last = None if run.status == "completed" else step
    stopped = run.summary.get("stopped_by") == "callback"
    ends = (StopAt(step, str(run.summary["stopped"])),) if stopped else ()
    watchers = Watchers(ends)
    stages = configuration.stages
    training = configuration.recipe.training
    budgets = [*(stage.epochs for stage in stages), training.epochs]
    first = dataclasses.replace(
        configuration,
        stages=(),
        recipe=dataclasses.replace(
            configuration.recipe, training=dataclasses.replace(training, epochs=budgets[0])
        ),
    )
    steps = [*(stage.steps for stage in stages), last]
    begin(first, target, progress, parts, like=run, watchers=watchers).run(steps[0])
    for epochs, end in zip(budgets[1:], steps[1:], strict=True):
        go_on(target, epochs, progress, parts, watchers).run(end)


def _sides(change: str) -> tuple[str, str]:
    """Return what the code was, and what it is now."""
    then, _, now = change.partition(", now ")
    return then, now


def _notes(run: Run, configuration: Configuration, step: int) -> tuple[str, ...]:
    notes = []
    if run.status != "completed":
        notes.append(f"the run is {run.status}: repeated up to its last commit, at step {step}")
    for stage in configuration.stages:
        notes.append(f"up to step {stage.steps} training.epochs was {stage.epochs}")
    return tuple(notes)
