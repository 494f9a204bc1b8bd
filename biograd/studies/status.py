"""How a comparison stands, from its folder alone: nothing is imported, waited for or written.

::

    study.json -> cells x seeds -> summary, run file, what failed -> done, running, failed, ...
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from biograd import disk
from biograd.errors import BiogradError, RecipeError, natural
from biograd.metrics import figure, headline
from biograd.recipes import construct
from biograd.runs.reader import Run, open_run
from biograd.runs.storage import RunPaths, holds_run
from biograd.studies import SAVED
from biograd.studies.design import Trainings
from biograd.studies.notes import TrainingFiles

State = Literal["done", "running", "failed", "stopped", "missing"]
STATES: tuple[State, ...] = ("done", "running", "failed", "stopped", "missing")


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """How one training stands.

    Attributes:
        seed: None: the search of the cell.
        state: ``stopped``: it was begun, and no process works on it; ``missing``: it was not begun.
        reason: of a failure, in one line.
        step, epoch: how far its run file goes.
        metric, value: the headline of the last evaluation.
    """

    cell: str
    seed: int | None
    state: State
    reason: str = ""
    step: int | None = None
    epoch: int | None = None
    metric: str = ""
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class StudyState:
    """How a comparison stands.

    Attributes:
        title: of the study.
        placed: whether a process of this machine places its trainings; None: that cannot be told.
    """

    folder: Path
    title: str
    placed: bool | None
    trainings: tuple[TrainingState, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many trainings there are in each state, searches not among them."""
        found = Counter(one.state for one in self.trainings if one.seed is not None)
        return {state: found[state] for state in STATES}


def status(folder: Path) -> StudyState:
    """Return how the comparison of a folder stands.

    Raises:
        RecipeError: no comparison was begun there, or what is there cannot be read as one.
    """
    path = folder / SAVED
    try:
        table = json.loads(disk.read_text(path))
        given = {key: value for key, value in table.items() if key != "kind"}
        settings = construct(Trainings, given, path)
        cells = [cell.name for cell in settings.expanded()]
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"{folder}: no study was begun there ({SAVED} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as a study: delete it") from error
    found = []
    for cell in cells if settings.tune is not None else ():
        found.append(_search(TrainingFiles.of(folder, cell), cell))
    for cell in cells:
        for seed in settings.seeds:
            found.append(_training(TrainingFiles.of(folder, cell, seed), cell, seed))
    placed = disk.is_held(folder / "study.lock")
    return StudyState(folder, str(settings.description), placed, tuple(found))


def _search(files: TrainingFiles, cell: str) -> TrainingState:
    if files.note.is_file():
        return TrainingState(cell, None, "done")
    if reason := files.failure():
        return TrainingState(cell, None, "failed", reason)
    return TrainingState(cell, None, "stopped" if files.journal.is_file() else "missing")


def _training(files: TrainingFiles, cell: str, seed: int) -> TrainingState:
    try:
        summary = files.summary()
        if summary is not None:
            name = headline(summary["summary"])
            epochs = summary["summary"].get("epochs")
            whole = None if epochs is None else int(epochs)
            return TrainingState(
                cell, seed, "done", "", None, whole, name, figure(summary["summary"])
            )
    except BiogradError as error:
        return TrainingState(cell, seed, "failed", str(error))
    reason, place = files.failure(), RunPaths.of(files.run)
    if not (place.file.exists() or holds_run(place.parts)):
        return TrainingState(cell, seed, "failed" if reason else "missing", reason)
    try:
        with open_run(files.run) as run:
            return _begun(run, cell, seed, reason)
    except BiogradError as error:  # it may have been packed this very moment
        return TrainingState(cell, seed, "failed" if reason else "stopped", reason or str(error))


def _begun(run: Run, cell: str, seed: int, reason: str) -> TrainingState:
    running = run.status == "running"
    state: State = "running" if running else "failed" if reason else "stopped"
    rows = run.scalars("epoch") if "epoch" in run.streams else {}
    epoch, name, value = _last(rows)
    said = "" if running else reason
    return TrainingState(cell, seed, state, said, run.last_step, epoch, name, value)


def _last(rows: Mapping[str, Any]) -> tuple[int, str, float | None]:
    """Return how many epochs ended, and the name and value of the last evaluation's figure."""
    ended = rows.get("epoch", ())
    if not len(ended):
        return 0, "", None
    names = [name for name in rows if name.startswith("test_") and name != "test_loss"]
    chosen = min(names, key=natural) if names else "test_loss"
    value = float(rows[chosen][-1]) if chosen in rows else None
    return int(ended[-1]) + 1, chosen.removeprefix("test_"), value
