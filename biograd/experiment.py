"""A training from request to run file, and back: start, resume, open.

::

    request -> configuration -> data, network, engine, trainer -> run file -> summary

The configuration is written into the run file before the first step; a run is resumed from the
file alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biograd import data, devices, ranks, recipes, user_code
from biograd.callbacks import NONE, Watchers
from biograd.configuration import (
    Configuration,
    OwnParts,
    TrainingRequest,
    again_on,
    configure,
    matching,
    on_some_device,
)
from biograd.errors import DataError, RecipeError, fitting
from biograd.progress import Progress
from biograd.recipes import EncodingRecipe
from biograd.recording import (
    Experiment,
    Interrupted,
    NullWriter,
    Recording,
    Sampled,
    Sampling,
    description,
    epoch_sums,
    fitting_sampling,
    restore,
)
from biograd.runs.checkpoint import Checkpoint, from_bytes, to_bytes
from biograd.runs.environment import environment
from biograd.runs.layout import Probe
from biograd.runs.reader import Run, open_run
from biograd.runs.writer import RunWriter

__all__ = [
    "Configuration",
    "Experiment",
    "Interrupted",
    "Progress",
    "TrainingRequest",
    "configure",
    "execute",
    "proceed",
    "restored",
]

log = logging.getLogger(__name__)

STEP = (
    "a step of the training is too large",
    "training.batch_size, the copies of the rule, or the network",
)


def execute(
    request: TrainingRequest,
    progress: Progress | None = None,
    watchers: Watchers = NONE,
) -> dict[str, Any]:
    """Train as requested, write the run file and return the summary.

    If ``torchrun`` started several processes, they train together: rank 0 writes and shows.

    Raises:
        RecipeError: the request is not valid, or the run file exists (use ``force``).
        DataError: the data cannot be had.
        Interrupted: the run was asked to stop; it can be resumed.
        Lost: another rank has ended; the run can be resumed.
    """
    with ranks.together(), _failing(request.device):
        summary = _execute(request, _shown(progress), watchers)
        ranks.after_first()
    return summary


@contextlib.contextmanager
def _failing(device: str | None) -> Iterator[None]:
    """Say in one line what fails in the user's code, for want of memory, or of the device's."""
    with user_code.named("the module"), fitting(*STEP), devices.in_their_types(device or ""):
        yield


def _shown(progress: Progress | None) -> Progress:
    """Return who shows how a run goes on: on rank 0 alone."""
    return Progress() if progress is None or ranks.rank() else progress


def _execute(request: TrainingRequest, progress: Progress, watchers: Watchers) -> dict[str, Any]:
    configuration = configure(request)
    path = request.out or _default_path(configuration)
    return begin(
        configuration,
        path,
        progress,
        request.parts(),
        force=request.force,
        repeatable=request.repeatable,
        watchers=watchers,
    ).run()


def begin(
    configuration: Configuration,
    path: Path,
    progress: Progress,
    parts: OwnParts | None = None,
    *,
    force: bool = False,
    like: Run | None = None,
    repeatable: bool = False,
    watchers: Watchers = NONE,
) -> Recording:
    """Return a run that is ready for its first step, its file begun.

    Args:
        parts: what is the user's own.
        force: replace an existing run.
        repeatable: refuse data that do not repeat.
        like: a run that learned from the same data; None: whatever they are.

    Raises:
        RecipeError: the run file exists.
        DataError: the data cannot be had, or are others.
    """
    parts, configuration = parts or OwnParts(), configuration.here()
    ranks.own_device(configuration.device)
    if not ranks.rank():
        RunWriter.check(path, force=force)
    known = (like.attribute("dataset_sha256"), like.path) if like else ("", "")
    dataset = _load(configuration, parts.data, *known)
    if repeatable and not dataset.digest:
        raise DataError(f"{configuration.dataset}: the data do not repeat: nothing can be compared")
    if configuration.control and not dataset.task.differentiable:
        raise RecipeError(
            f"--control: the control trains the readout by the gradient of the loss, and "
            f"{type(dataset.task).__name__} has none: leave it out"
        )
    check_step(configuration, dataset)
    configuration = configuration.settled(dataset)
    for note in dataset.notes:
        progress.note(note)
    pristine = parts.another() if configuration.control else None
    experiment = Experiment(configuration, dataset, parts)
    if caveat := experiment.engine.estimator.caveat:
        progress.note(f"{configuration.estimator}: {caveat}")
    if (decorrelate := experiment.engine.decorrelate) and decorrelate.passed_over:
        progress.note(decorrelate.passed_over)
    probe = description.make_probe(dataset, configuration.recipe.recording.stimuli)
    sampling: Sampling | None = None
    writer: RunWriter | NullWriter
    if ranks.rank():
        writer = NullWriter(path)
    else:
        layers = description.layers(experiment, probe)  # first: Brian2 chooses its target by it
        sampling = Sampling(Sampled.of(experiment, probe), layers)
        if size := sampling.check():
            progress.note(size)
        writer = RunWriter(
            path,
            config=configuration.table(),
            environment=environment(configuration.device),
            attributes=description.attributes(experiment, {one.kind for one in layers.values()}),
            probe=probe,
            layers=layers,
            credit=experiment.account.as_dict(),
            code=parts.texts,
            rows=sampling.rows,
            recording=sampling.said(),
            force=force,
        )
    recording = Recording(experiment, writer, probe, sampling, progress, watchers)
    recording.pristine = pristine
    return recording


def check_step(configuration: Configuration, dataset: data.Dataset) -> None:
    """Refuse a length of steps that nobody would read, of a module on data without time.

    Raises:
        RecipeError: it is given.
    """
    dt_ms = configuration.recipe.encoding.dt_ms
    if configuration.module and not dataset.train.timed and dt_ms != EncodingRecipe.dt_ms:
        raise RecipeError(
            f"encoding.dt_ms = {dt_ms:g}: has no effect on a module of yours: the data have no "
            "time axis"
        )


def _load(
    configuration: Configuration, own: Any = None, digest: str = "", path: object = ""
) -> data.Dataset:
    """Return the data, which must be those of ``digest``, which the run ``path`` had, if given."""
    offered = configuration.offered() if path else configuration
    try:
        with ranks.first_of_machine():
            dataset = offered.read(own)
    except DataError as error:
        if offered is configuration:
            raise
        raise DataError(
            f"{error} [addresses that only {path} names are not fetched: fetch the files of their"
            " recipe by `biograd data fetch RECIPE`]"
        ) from error
    if digest and dataset.digest != digest:
        now = f"{dataset.digest[:12]}…" if dataset.digest else "of no digest"
        raise DataError(
            f"{path}: the run learned from other {configuration.dataset} data (SHA-256 "
            f"{digest[:12]}…, now {now}): give back the data of then"
        )
    return dataset


def _default_path(configuration: Configuration) -> Path:
    parts = (configuration.model, configuration.dataset, configuration.estimator)
    return Path("runs") / f"{'-'.join(parts)}-seed{configuration.seed}.h5"


def proceed(
    path: Path,
    epochs: int | None = None,
    progress: Progress | None = None,
    parts: OwnParts | None = None,
    watchers: Watchers = NONE,
    device: str | None = None,
) -> dict[str, Any]:
    """Go on with a run from its last commit, to ``epochs`` in all if given; return its summary.

    Args:
        parts: the user's own, as far as the run needs them; a module's weights are replaced.
        device: another of the same kind; None: that of the run.

    Raises:
        RunFileError: there is no such run, or it cannot be read.
        Lost: another rank has ended; the run can be resumed.
    """
    with ranks.together(), _failing(device):
        own = parts or OwnParts()
        summary = go_on(path, epochs, _shown(progress), own, watchers, device).run()
        ranks.after_first()
    return summary


def _known(path: Path) -> bytes:
    """Return what must be known of a run to go on with it, as JSON."""
    with open_run(path) as run:
        Configuration.of(run.config, path)
        layers = {name: description.geometry(layer) for name, layer in run.layers.items()}
        known = [run.config, run.attribute("dataset_sha256"), run.last_step, layers]
        known.append(run.further_rows)
    return json.dumps(known).encode()


def go_on(
    path: Path,
    epochs: int | None,
    progress: Progress,
    parts: OwnParts,
    watchers: Watchers = NONE,
    device: str | None = None,
) -> Recording:
    """Return a run that is ready to go on from its last commit (see ``proceed``)."""
    table, digest, step, layers, rows = json.loads(ranks.from_first(lambda: _known(path)))
    configuration = Configuration.of(table, path)
    if epochs is not None:
        _check_epochs(configuration, epochs, path)
        if configuration.recipe.training.schedule != "constant":
            progress.note("the learning rate now follows the schedule of the longer run")
        configuration = configuration.longer(epochs, step)
    if changed := matching(configuration, parts, path):
        raise RecipeError(
            f"{path}: the run was trained by other code: {'; '.join(changed)}: give back that of "
            "then (`biograd inspect --source` prints it), or train anew"
        )
    configuration = again_on(device, configuration.given(parts.data), path)
    ranks.own_device(configuration.device)
    dataset = _load(configuration, parts.data, digest, path)
    experiment = Experiment(configuration, dataset, parts, fresh=False)
    done = -(-step // experiment.trainer.per_epoch)
    if epochs is not None and epochs < done:
        experiment.engine.detach()
        raise RecipeError(
            f"{path}: --epochs {epochs}: the run is in epoch {done} already; give at least as many"
        )
    try:
        probe = description.make_probe(dataset, configuration.recipe.recording.stimuli)
        writer, checkpoint, sampling = _taken_over(
            path, configuration, experiment, probe, layers, rows
        )
        recording = Recording(experiment, writer, probe, sampling, progress, watchers)
        recording.restore(*checkpoint, path)
        recording.pristine = parts if parts.repeats or not configuration.module else None
    except BaseException:
        experiment.engine.detach()
        raise
    return recording


def _check_epochs(configuration: Configuration, epochs: int, path: Path) -> None:
    """Refuse epochs for a run whose budget is another."""
    unit, amount = configuration.recipe.training.budget
    if unit != "epochs":
        raise RecipeError(
            f"{path}: --epochs {epochs}: the run's budget is training.{unit} = {amount}, which "
            "cannot be changed: train again with another"
        )


def _taken_over(
    path: Path,
    configuration: Configuration,
    experiment: Experiment,
    probe: Probe,
    layers: Mapping[str, object],
    rows: Mapping[str, Any],
) -> tuple[RunWriter | NullWriter, Checkpoint, Sampling | None]:
    """Return a run's writer, its last checkpoint, which rank 0 reads for all, and its sampling.

    The checkpoint is tried before anything on the disk is changed.
    """
    sampled: list[Sampling] = []

    def tried(checkpoint: Checkpoint) -> None:
        restore(experiment, *checkpoint, path)
        epoch_sums(checkpoint[1], configuration.recipe.training.batch_size, path)
        sampled.append(fitting_sampling(experiment, probe, layers, rows, path))

    if ranks.size() == 1:
        writer, checkpoint = RunWriter.resume(path, config=configuration.table(), tried=tried)
        return writer, checkpoint, sampled[-1]
    taken: list[RunWriter] = []

    def read() -> bytes:
        one, checkpoint = RunWriter.resume(path, config=configuration.table(), tried=tried)
        taken.append(one)
        body, text = to_bytes(*checkpoint)
        return len(text).to_bytes(8, "big") + text + body

    sent = ranks.from_first(read)
    start = 8 + int.from_bytes(sent[:8], "big")
    checkpoint = from_bytes(sent[start:], sent[8:start], str(path))
    if taken:
        return taken[0], checkpoint, sampled[-1]
    return NullWriter(path), checkpoint, None


def asked(given: Any) -> dict[str, Any]:
    """Return what a request says of data: the name of a dataset, or the user's own."""
    if isinstance(given, str | Path) and not recipes.FUNCTION.fullmatch(str(given)):
        return {"dataset": str(given)}
    return {"own": given}


def restored(
    run: Run, parts: OwnParts, call: str, step: int | None = None, device: str | None = None
) -> Experiment:
    """Return the experiment of a run at a checkpoint, if ``step`` is None with the run's weights.

    These are those of the last checkpoint, or the best (``training.keep``).

    Args:
        device: None: that of the run, or the CPU where there is none such.
    """
    configuration = Configuration.of(run.config, run.path)
    for change in matching(configuration, parts, run.path, call):
        log.warning("%s: the run was trained by other code: %s", run.path, change)
    before = configuration.device
    configuration = on_some_device(device, configuration.given(parts.data), run.path)
    state = None if step == 0 else run.checkpoint(step)  # the beginning follows from the seed
    known = run.attribute("dataset_sha256")
    with user_code.named("the module"):
        dataset = _load(configuration, parts.data, known, run.path)
        experiment = Experiment(configuration, dataset, parts, fresh=state is None)
    if state is not None:
        moved = devices.kind(before) != devices.kind(configuration.device)
        restore(experiment, *state, run.path, moved=moved)
    if step is None:
        experiment.trainer.take_best()
    return experiment
