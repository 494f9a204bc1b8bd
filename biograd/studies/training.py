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
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from biograd import experiment
from biograd.errors import BiogradError, RecipeError
from biograd.recipes import Range, Table
from biograd.runs import storage
from biograd.studies import SAVED, Key, Place, Progress, Report, comparison, engines, grid, outputs
from biograd.studies.comparison import Comparison, Summary
from biograd.studies.grid import Cell, Grid
from biograd.studies.tasks import Event, Failure, Task


@dataclasses.dataclass(frozen=True)
class Trainings:
    """The settings of a study of trainings: a grid, listed cells, or both."""

    description: str = ""
    cells: Table = dataclasses.field(default_factory=dict)
    grid: Grid | None = None
    model: str = "ann"
    dataset: str = "digits"
    estimator: str | None = None
    set: tuple[str, ...] = ()
    seeds: tuple[Annotated[int, Range(0)], ...] = (0, 1, 2)
    baseline: str | None = None
    """The cell to which the others are compared; by default the first."""
    error: bool = False
    """Show test errors instead of accuracies."""

    def lines(self) -> list[Cell]:
        """Return the cells in the order of the table.

        Raises:
            RecipeError: a cell, an axis or the baseline is not valid.
        """
        common = (self.model, self.dataset, self.estimator)
        cells = grid.expand(self.grid, *common) if self.grid else []
        cells += grid.listed(self.cells, *common)
        grid.check(cells, self.baseline)
        stems = [_stem(cell.name) for cell in cells]
        for stem, cell in zip(stems, cells, strict=True):
            if stems.count(stem) > 1:
                raise RecipeError(f"study: cell {cell.name!r}: another would have the same file")
        if len({*self.seeds}) < len(self.seeds) or not self.seeds:
            raise RecipeError(f"study: seeds = {list(self.seeds)}: give different ones")
        return cells

    def trainings(self, place: Place) -> list[Training]:
        """Return every cell with every seed.

        Seeds are outside, so that an interrupted study has all cells of the seeds that it has.
        """
        cells = self.lines()
        return [Training(self, cell, seed, place) for seed in self.seeds for cell in cells]

    def table(self) -> Table:
        """Return the study as a file of it would hold it."""
        return {"kind": "training", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study: a cell with a seed.

    Attributes:
        path: of its run file; its summary lies beside it.
    """

    settings: Trainings
    cell: Cell
    seed: int
    place: Place

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
        return self.place.folder / f"{_stem(self.cell.name)}-seed{self.seed}.h5"

    @property
    def note(self) -> Path:
        """Where its summary goes, when it is complete."""
        return self.path.with_suffix(".json")

    def request(self) -> experiment.Request:
        """Return what is asked of it."""
        return experiment.Request(
            model=self.cell.model,
            dataset=self.cell.dataset,
            estimator=self.cell.estimator,
            seed=self.seed,
            out=self.path,
            assignments=(*self.settings.set, *self.cell.assignments),
            data_dir=self.place.data_dir,
            offline=self.place.offline,
        )

    def asked(self) -> Table:
        """Return its configuration, checked against what is in the folder already.

        Raises:
            RecipeError: the request is not valid, or what is there was made with other settings.
        """
        asked: Table = json.loads(json.dumps(experiment.configure(self.request()).table()))
        known = self._read()
        if known is not None:
            _same(known["configuration"], asked, self.note)
        elif self._begun():
            with experiment.load(self.path) as run:
                _same(json.loads(json.dumps(run.config)), asked, self.path)
        return asked

    def known(self) -> Summary | None:
        """Return its summary; None if it has not been trained to the end."""
        found = self._read()
        return None if found is None else found["summary"]

    def run(self, progress: Progress | None = None) -> Summary:
        """Return its summary: as it was written before, resumed, or new."""
        asked, known = self.asked(), self.known()
        if known is not None:
            return known
        if self._begun():
            found = experiment.proceed(self.path, progress=progress)
        else:
            found = experiment.execute(self.request(), progress)
        storage.write_json(self.note, {"configuration": asked, "summary": found})
        return found

    def _begun(self) -> bool:
        place = storage.Place.of(self.path)
        return place.file.exists() or place.parts.is_dir()

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RecipeError(f"{self.note}: cannot be read ({error}): delete it") from error


def _stem(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-") or "cell"


def _same(known: object, asked: object, where: Path) -> None:
    if known != asked:
        raise RecipeError(
            f"{where}: was made with other settings: give another folder, or delete the file"
        )


def train(settings: Trainings, cell: Cell, seed: int, place: Place) -> None:
    """Do one training of a study; what another process is given."""
    Training(settings, cell, seed, place).run()


def run(settings: Trainings, place: Place, progress: Progress) -> Report:
    """Train every cell with every seed and return the table.

    Raises:
        RecipeError: the study is not valid, or the folder holds runs of other settings.
    """
    trainings = settings.trainings(place)
    if place.task is not None:
        if not 0 <= place.task < len(trainings):
            raise RecipeError(f"--task {place.task}: the study has {len(trainings)} trainings")
        trainings = [trainings[place.task]]
    failures, todo = _divide(trainings)
    if place.task is None:
        keep(settings, place.folder)
    progress.trainings(
        [one.key for one in trainings],
        {one.key: known for one in trainings if (known := one.known())},
    )
    failures += _train(todo, place, progress)
    cells = list({one.cell.name: one.cell for one in trainings}.values())
    found: dict[str, dict[int, Summary]] = {cell.name: {} for cell in cells}
    for one in trainings:
        known = one.known()
        if known is not None:
            found[one.cell.name][one.seed] = known
    baseline = settings.baseline or cells[0].name
    compared = Comparison(cells, settings.seeds, found, baseline, settings.error)
    report = comparison.report(compared, failures)
    if place.task is None:
        files = {one.key: one.path for one in trainings if one.known() is not None}
        outputs.write(report, settings.table(), files, place.folder, settings.error)
    return report


def keep(settings: Trainings, folder: Path) -> None:
    """Write the study into its folder, from where it can go on."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(folder / SAVED, settings.table())


def _divide(trainings: Sequence[Training]) -> tuple[list[Failure], list[Training]]:
    """Return the trainings that cannot be, and those that are to be done.

    Raises:
        RecipeError: none can be, or what is in the folder does not belong there.
    """
    failures, todo = [], []
    for training in trainings:
        try:
            experiment.configure(training.request())
        except RecipeError as error:
            failures.append(Failure(training.name, str(error)))
            continue
        training.asked()
        if training.known() is None:
            todo.append(training)
    if len(failures) == len(trainings):
        raise RecipeError(failures[0].reason)
    return failures, todo


def _train(todo: Sequence[Training], place: Place, progress: Progress) -> list[Failure]:
    """Do the trainings, here or in processes of their own, and return those that failed."""
    by_name = {training.name: training for training in todo}
    if place.placement.engine == "local" and place.placement.workers == 1:
        return [failure for one in todo if (failure := _alone(one, progress))]

    def watch(event: Event) -> None:
        training = by_name[event.name]
        summary = training.known() if event.state == "done" else None
        progress.event(training.key, event.state, event.reason, summary)

    tasks = [Task(one.name, train, (one.settings, one.cell, one.seed, one.place)) for one in todo]
    return engines.place(tasks, place.placement, watch)


def _alone(training: Training, progress: Progress) -> Failure | None:
    """Do one training in this process; return why it failed, if it did."""
    progress.event(training.key, "started", "", None)
    try:
        summary = training.run(progress)
    except experiment.Interrupted:
        raise
    except (BiogradError, OSError) as error:
        reason = " ".join(str(error).split())
        progress.event(training.key, "failed", reason, None)
        return Failure(training.name, reason)
    progress.event(training.key, "done", "", summary)
    return None
