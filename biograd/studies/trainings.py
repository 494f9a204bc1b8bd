"""A study of trainings: cells that differ in model, data, estimator or settings, seeds over each.

::

    settings -> cells x seeds -> tasks -> processes -> run files -> summaries -> statistics

Every cell has the same seeds, so that initial weights and the order of the data agree where shapes
agree; differences are paired by seed.  What is done is in the folder alone: an interrupted study
goes on where it stopped, whoever places its processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from biograd import devices, disk, experiment, placement
from biograd.environments import ENVIRONMENTS
from biograd.errors import BiogradError, RecipeError
from biograd.placement import Event, Failure, Work
from biograd.placement.allotment import own_device, shared
from biograd.progress import Progress
from biograd.studies import Place, Report, Row, search, study_folder
from biograd.studies.cell_training import Training, train
from biograd.studies.design import Trainings, check_consent, idle
from biograd.studies.notes import TrainingFiles, noted
from biograd.studies.results import comparison, outputs
from biograd.studies.results.comparison import Comparison, Summary
from biograd.studies.search import Search
from biograd.tasks import TASKS, Decisions


def tune(settings: Search, training: Training) -> None:
    """Search for a cell, of which any training is given, and note what was found."""
    files = _searched(training)
    found = search.run(settings, training.request(), files.journal, training.place.storage)
    disk.write_json(files.note, dataclasses.asdict(found))


def _searched(training: Training) -> TrainingFiles:
    return TrainingFiles.of(training.place.folder, training.cell.name)


def planned(settings: Trainings, place: Place) -> list[Training]:
    """Return every cell with every seed.

    Seeds are outside, so that an interrupted study has all cells of the seeds that it has.
    """
    cells = settings.lines()
    check_consent(settings, cells, place)
    found = [Training(settings, cell, seed, place) for seed in settings.seeds for cell in cells]
    if place.task is None:
        _check_controls(found[: len(cells)])
    return found


def _check_controls(trainings: Sequence[Training]) -> None:
    """Refuse a control where the task has no gradient, by which it trains the readout.

    Raises:
        RecipeError: with what to do.
    """
    for one in trainings:
        if not one.cell.control or _mistake(one):  # which is said where it is planned
            continue
        request = one.request()
        configuration = experiment.configure(request)
        if not _rewarded(configuration):
            continue
        task = configuration.read(request.own).task
        if not task.differentiable:
            score = "--set dataset.task.score=true, or " * isinstance(task, Decisions)
            raise RecipeError(
                f"{one.cell.name}: the control trains the readout by the gradient of the loss, and "
                f"{type(task).__name__} has none: {score}no control (--no-control; in a study "
                "control = false)"
            )


def _rewarded(configuration: experiment.Configuration) -> bool:
    """Return whether data may be an environment, or have a task without a gradient."""
    source, name = configuration.data.source, configuration.data.task.get("name", "")
    graph = name not in TASKS or TASKS[name].differentiable is True
    return source in ENVIRONMENTS or source in ("environment", "python") or not graph


def run(settings: Trainings, place: Place, progress: Progress) -> Report:
    """Train every cell with every seed and return the table.

    Raises:
        RecipeError: the study is not valid, or the folder holds another one.
    """
    trainings = planned(settings, place)
    if place.storage and settings.tune is None:
        raise RecipeError("--storage: say over what to search, as in --tune KEY=LOW..HIGH")
    if place.placement.here:
        devices.present(place.placement.device)
    if place.task is not None:
        only = [_only(trainings, place.task, settings)]
        with own_device(shared(place.placement.device)):
            return _run(settings, only, place, progress)
    study_folder.check(settings.table(), place.folder)
    with study_folder.owned(place.folder):
        return _run(settings, trainings, place, progress)


def _run(
    settings: Trainings, trainings: list[Training], place: Place, progress: Progress
) -> Report:
    cells = list({one.cell.name: one.cell for one in trainings}.values())
    failures, tuning = list[Failure](), list[Row]()
    if settings.tune is not None:
        settings.tune.check()
        study_folder.keep(settings.table(), place.folder)
        trainings, failures, tuning = _tune(settings.tune, trainings, progress)
    lost, todo = _divide(trainings)
    gone = {one.name for one in lost}
    asked = {one.cell.name: one.request() for one in trainings if one.name not in gone}
    notes = [] if place.task is not None else idle(asked)
    for note in notes:
        progress.note(note)
    if place.task is None:
        study_folder.keep(settings.table(), place.folder)
    known = {one.key: summary for one in trainings if (summary := one.known())}
    progress.trainings([one.key for one in trainings], known)
    failures += lost + _train(todo, progress)
    found: dict[str, dict[int, Summary]] = {cell.name: {} for cell in cells}
    files = {}
    for one in trainings:
        ended = one.known()
        if ended is not None:
            found[one.cell.name][one.seed] = ended
            files[one.key] = one.path
    baseline = settings.baseline or cells[0].name
    seeds = list(dict.fromkeys(one.seed for one in trainings)) or settings.seeds
    split = "validation" if any(one.held_out for one in trainings) else "test"
    compared = Comparison(cells, seeds, found, baseline, settings.error, split)
    report = comparison.report(compared, failures, tuning)
    report.notes.extend(notes)
    if place.task is None:
        with disk.writing(place.folder, study_folder.AGAIN):
            outputs.write(report, settings.table(), files, place.folder, compared.shown)
    return report


def _only(trainings: Sequence[Training], task: int, settings: Trainings) -> Training:
    if settings.tune is not None:
        raise RecipeError("--task: a study with a search has two stages: run it without")
    if not 0 <= task < len(trainings):
        raise RecipeError(f"--task {task}: the study has {len(trainings)} trainings")
    return trainings[task]


def _tune(
    settings: Search, trainings: Sequence[Training], progress: Progress
) -> tuple[list[Training], list[Failure], list[Row]]:
    """Search for every cell; return the trainings with what was found, failures, and a table."""
    if any("dataset.validation=" in text for one in trainings for text in one.asks):
        raise RecipeError("tune: holds data out by itself: leave dataset.validation away")
    first: dict[str, Training] = {}
    for one in trainings:
        first.setdefault(one.cell.name, one)
    corner = settings.corner()
    mistakes = [_mistake(dataclasses.replace(one, found=corner)) for one in first.values()]
    if all(mistakes):
        raise RecipeError(mistakes[0])
    names = {f"{cell}, search": cell for cell in first}
    count = settings.trials
    progress.note(f"searching: {count} trials for each of {len(first)} cells")

    def watch(event: Event) -> None:
        files = _searched(first[names[event.name]])
        noted(files, event.reason if event.state == "failed" else "")
        if event.state != "started":
            progress.note(f"{event.name}: {event.reason or event.state}")

    tasks = [Work(name, tune, (settings, first[cell])) for name, cell in names.items()]
    place = trainings[0].place.placement
    if place.engine == "local" and place.workers == 1:
        lost = [failure for task in tasks if (failure := _attempt(task, watch))]
    else:
        lost = placement.place(tasks, place, watch)
    without = {names[failure.name]: failure.reason for failure in lost}
    failures = [
        Failure(one.name, without[one.cell.name]) for one in trainings if one.cell.name in without
    ]
    for one in trainings:
        if one.cell.name in without:
            noted(one.files, without[one.cell.name])
    rows, tuned = [], []
    for cell, begun in first.items():
        if cell not in without:
            row, found = _noted(_searched(begun).note)
            rows.append({"cell": cell, **row})
            tuned += [
                dataclasses.replace(other, found=found)
                for other in trainings
                if other.cell.name == cell
            ]
    return tuned, failures, rows


def _noted(note: Path) -> tuple[Row, tuple[str, ...]]:
    """Return the row of a search that ended, and the assignments that it found.

    Raises:
        RecipeError: its note cannot be read.
    """
    try:
        table = json.loads(disk.read_text(note))
        found = tuple(map(str, table["assignments"]))
        chosen = dict(text.split("=", 1) for text in found)
        held_out = {f"held_out_{table['metric']}": float(table["value"])}
        return {"trials": int(table["trials"]), **held_out, **chosen}, found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{note}: is damaged: delete it") from error


def _attempt(task: Work, watch: Callable[[Event], None]) -> Failure | None:
    """Do a task in this process; return why it failed, if it did."""
    watch(Event(task.name, "started"))
    try:
        task.function(*task.arguments)
    except experiment.Interrupted:
        raise
    except (BiogradError, OSError) as error:
        reason = " ".join(str(error).split())
        watch(Event(task.name, "failed", reason))
        return Failure(task.name, reason)
    watch(Event(task.name, "done"))
    return None


def _divide(trainings: Sequence[Training]) -> tuple[list[Failure], list[Training]]:
    """Return the trainings that cannot be, and those that are to be done.

    Raises:
        RecipeError: none can be, or what is in the folder does not belong there.
    """
    failures, todo, mistaken = [], [], list[Training]()
    for training in trainings:
        mistake = _mistake(training)
        if mistake:
            failures.append(Failure(training.name, mistake))
            mistaken.append(training)
            continue
        training.asked()
        if training.known() is None:
            todo.append(training)
    if trainings and len(failures) == len(trainings):
        raise RecipeError(failures[0].reason)
    for training, failure in zip(mistaken, failures, strict=True):
        noted(training.files, failure.reason)
    return failures, todo


def _mistake(training: Training) -> str:
    """Return why a training cannot be configured, "" if it can."""
    try:
        experiment.configure(training.request())
    except RecipeError as error:
        return str(error)
    return ""


def _train(todo: Sequence[Training], progress: Progress) -> list[Failure]:
    """Do the trainings, here or in processes of their own, and return those that failed."""
    by_name = {training.name: training for training in todo}

    def watch(event: Event) -> None:
        training = by_name[event.name]
        noted(training.files, event.reason if event.state == "failed" else "")
        summary = training.known() if event.state == "done" else None
        progress.event(training.key, event.state, event.reason, summary)

    if not todo:
        return []
    place = todo[0].place.placement
    if place.engine == "local" and place.workers == 1:
        tasks = [Work(one.name, one.run, (progress, len(todo) > 1)) for one in todo]
        return [failure for task in tasks if (failure := _attempt(task, watch))]
    return placement.place([Work(one.name, train, (one,)) for one in todo], place, watch)
