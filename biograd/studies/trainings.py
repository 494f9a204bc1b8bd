"""A study of trainings: cells that differ in model, data, estimator or settings, seeds over each.

::

    settings -> cells x seeds -> tasks -> processes -> run files -> summaries -> statistics

Every cell has the same seeds, so that initial weights and the order of the data agree where shapes
agree; differences are paired by seed.  What is done is in the folder alone: an interrupted study
goes on where it stopped, whoever places its processes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from biograd import disk, experiment, placement, recipes
from biograd.data import ASKED
from biograd.errors import BiogradError, RecipeError
from biograd.metrics import figure
from biograd.placement import Event, Failure, Work
from biograd.progress import Key, Progress
from biograd.recipes import Table
from biograd.runs.reader import open_run
from biograd.runs.storage import RunPaths, holds_run
from biograd.studies import Place, Report, Row, search, study_folder
from biograd.studies.design import Trainings, check_consent, check_same, idle, plain, stem
from biograd.studies.grid import Cell
from biograd.studies.results import comparison, outputs
from biograd.studies.results.comparison import Comparison, Summary
from biograd.studies.search import Search

OWN = (*ASKED, "npz", "hdf5", "folder")
"""Sources whose content no recipe fixes."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study: a cell with a seed.

    Attributes:
        found: settings that a search chose.
        path: of its run file; its summary lies beside it.
    """

    settings: Trainings
    cell: Cell
    seed: int
    place: Place
    found: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def key(self) -> Key:
        """Its cell and its seed."""
        return self.cell.name, self.seed

    @property
    def path(self) -> Path:
        """Where its run file goes."""
        return self.place.folder / f"{stem(self.cell.name)}-seed{self.seed}.h5"

    @property
    def note(self) -> Path:
        """Where its summary goes, when it is complete."""
        return self.path.with_suffix(".json")

    @property
    def asks(self) -> tuple[str, ...]:
        """All that is set beside the recipes, ``KEY=VALUE``."""
        return (*self.settings.set, *self.cell.assignments, *self.found)

    def request(self) -> experiment.TrainingRequest:
        """Return what is asked of it."""
        place, settings = self.place, self.settings
        model = place.model(self.cell.model)
        own = not isinstance(model, str) or recipes.is_module(model)
        return experiment.TrainingRequest(
            model=copy.deepcopy(model) if isinstance(model, nn.Module) else model,
            dataset=self.cell.dataset,
            own=place.data(self.cell.dataset),
            loss=place.code(settings.loss) if settings.loss else None,
            reset=place.code(settings.reset) if settings.reset and own else None,
            allow_code=place.allow_code,
            repeatable=True,
            estimator=self.cell.estimator,
            seed=self.seed,
            out=self.path,
            common=(*self.settings.set, *self.found),
            assignments=self.cell.assignments,
            data_dir=self.place.data_dir,
            offline=self.place.offline,
        )

    def asked(self) -> Table:
        """Return its configuration, checked against what is in the folder already.

        Raises:
            RecipeError: the request is not valid, or what is there was made with other settings.
        """
        request = self.request()
        configuration = experiment.configure(request)
        asked, known = plain(configuration), self._read()
        if known is not None:
            if not self.path.exists():
                raise RecipeError(
                    f"{self.path}: is gone, its summary is there: delete {self.note.name} to train "
                    "it again"
                )
            check_same(known["configuration"], asked, self.note)
            if configuration.data.source in OWN:
                self._same_data(configuration, request.own)
        elif self._begun():
            with open_run(self.path) as run:
                check_same(run.config, asked, self.path)
        return asked

    def _same_data(self, configuration: experiment.Configuration, own: Any) -> None:
        """Refuse what was learned from own data that are others now."""
        key = (
            id(own),
            json.dumps(dataclasses.asdict(configuration.data), default=str),
            configuration.dataset,
        )
        if key not in self.place.digests:
            self.place.digests[key] = configuration.read(own).digest
        with open_run(self.path) as run:
            if run.attribute("dataset_sha256") != self.place.digests[key]:
                raise RecipeError(
                    f"{self.path}: was learned from other {configuration.dataset} data: give "
                    "another folder, or delete the file"
                )

    def known(self) -> Summary | None:
        """Return its summary; None if it has not been trained to the end."""
        found = self._read()
        return None if found is None else found["summary"]

    @property
    def held_out(self) -> bool:
        """Whether it was judged on a held-out part of the training data, not on the test split."""
        found = self._read()
        if found is None or found["summary"].get("test"):
            return False
        held = found["configuration"]["data"]["validation"] > 0  # all that older summaries know
        return held or found["summary"].get("evaluated_on") == "validation"

    def run(self, progress: Progress | None = None, shared: bool = False) -> Summary:
        """Return its summary: as it was written before, resumed, or new.

        Args:
            shared: other trainings run in this process, whose memory would count as well.
        """
        asked, known = self.asked(), self.known()
        if known is not None:
            return known
        if self._begun():
            parts = self.request().parts().another()
            found = experiment.proceed(self.path, progress=progress, parts=parts)
        else:
            found = experiment.execute(self.request(), progress)
        if shared:
            found = {**found, "peak_memory_bytes": None}
        disk.write_json(self.note, {"configuration": asked, "summary": found})
        return found

    def _begun(self) -> bool:
        place = RunPaths.of(self.path)
        return place.file.exists() or holds_run(place.parts)

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
            # what every table needs
            _ = found["configuration"], figure(found["summary"])
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecipeError(f"{self.note}: is damaged: delete it") from error


def train(training: Training) -> None:
    """Do one training of a study; what another process is given."""
    training.run()


def tune(settings: Search, training: Training) -> None:
    """Search for a cell, of which any training is given, and note what was found."""
    where = _notes_of_search(training)
    found = search.run(settings, training.request(), where.with_suffix(".journal"))
    disk.write_json(where, dataclasses.asdict(found))


def _notes_of_search(training: Training) -> Path:
    return training.place.folder / f"{stem(training.cell.name)}-tuning.json"


def planned(settings: Trainings, place: Place) -> list[Training]:
    """Return every cell with every seed.

    Seeds are outside, so that an interrupted study has all cells of the seeds that it has.
    """
    cells = settings.lines()
    check_consent(settings, cells, place)
    return [Training(settings, cell, seed, place) for seed in settings.seeds for cell in cells]


def run(settings: Trainings, place: Place, progress: Progress) -> Report:
    """Train every cell with every seed and return the table.

    Raises:
        RecipeError: the study is not valid, or the folder holds another one.
    """
    trainings = planned(settings, place)
    if place.task is not None:
        only = [_only(trainings, place.task, settings)]
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
    rows, tuned = [], []
    for cell, begun in first.items():
        if cell not in without:
            table = json.loads(_notes_of_search(begun).read_text(encoding="utf-8"))
            chosen = dict(text.split("=", 1) for text in table["assignments"])
            rows.append(
                {
                    "cell": cell,
                    "trials": table["trials"],
                    f"held_out_{table['metric']}": table["value"],
                }
                | chosen
            )
            found = tuple(table["assignments"])
            tuned += [
                dataclasses.replace(other, found=found)
                for other in trainings
                if other.cell.name == cell
            ]
    return tuned, failures, rows


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
    failures, todo = [], []
    for training in trainings:
        mistake = _mistake(training)
        if mistake:
            failures.append(Failure(training.name, mistake))
            continue
        training.asked()
        if training.known() is None:
            todo.append(training)
    if trainings and len(failures) == len(trainings):
        raise RecipeError(failures[0].reason)
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
        summary = training.known() if event.state == "done" else None
        progress.event(training.key, event.state, event.reason, summary)

    if not todo:
        return []
    place = todo[0].place.placement
    if place.engine == "local" and place.workers == 1:
        tasks = [Work(one.name, one.run, (progress, len(todo) > 1)) for one in todo]
        return [failure for task in tasks if (failure := _attempt(task, watch))]
    return placement.place([Work(one.name, train, (one,)) for one in todo], place, watch)
