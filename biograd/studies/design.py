"""The design of a study of trainings: its cells, which differ in a factor, and its seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from biograd import recipes
from biograd.configuration import Configuration, TrainingRequest, without_effect
from biograd.errors import RecipeError
from biograd.recipes import Range, Table
from biograd.studies import Place, grid
from biograd.studies.grid import Cell, Grid
from biograd.studies.notes import stem
from biograd.studies.search import Search
from biograd.user_code import is_named, named_metrics


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
    loss: str = ""
    """A function of the user's, ``FILE.py:NAME``, for every training; others by a key."""
    reset: str = ""
    """Likewise, for every module of theirs."""
    metrics: tuple[str, ...] = ()
    """Likewise, of every training, ``[NAME=]FILE.py:NAME``; biograd's by training.metrics."""
    seeds: tuple[Annotated[int, Range(0)], ...] = (0, 1, 2)
    baseline: str | None = None
    """The cell to which the others are compared; by default the first."""
    error: bool = False
    """Show test errors instead of accuracies."""
    tune: Search | None = None
    """Choose settings of every cell, all with as many trials, before it is trained."""

    def lines(self) -> list[Cell]:
        """Return the cells in the order of the table.

        Raises:
            RecipeError: a cell, an axis or the baseline is not valid.
        """
        cells = self.expanded()
        grid.check(cells, self.baseline)
        for key, text in (("loss", self.loss), ("reset", self.reset)):
            if text and not is_named(text):
                where = {"loss": "training.loss", "reset": "module.reset"}[key]
                raise RecipeError(f"study: {key} = {text!r}: is no code: give it as {where}")
        for name, text in named_metrics(self.metrics).items():
            if not is_named(text):
                raise RecipeError(f"study: metrics: {name} is no code: give it as training.metrics")
        stems = [stem(cell.name) for cell in cells]
        for own, cell in zip(stems, cells, strict=True):
            if stems.count(own) > 1:
                raise RecipeError(f"study: cell {cell.name!r}: another would have the same file")
        if len({*self.seeds}) < len(self.seeds) or not self.seeds:
            raise RecipeError(f"study: seeds = {list(self.seeds)}: give different ones")
        return cells

    def expanded(self) -> list[Cell]:
        """Return the cells as they are written, unchecked."""
        common = (self.model, self.dataset, self.estimator)
        cells = grid.expand(self.grid, *common) if self.grid else []
        return cells + grid.listed(self.cells, *common)

    def table(self) -> Table:
        """Return the study as a file of it would hold it."""
        return {"kind": "training", **dataclasses.asdict(self)}


def check_consent(settings: Trainings, cells: Sequence[Cell], place: Place) -> None:
    """Refuse a study that needs code which nobody typed, or data and models that are not here.

    Raises:
        RecipeError: with the first.
    """
    for cell in cells:
        place.data(cell.dataset)
        model = place.model(cell.model)
        if isinstance(model, str):
            table = recipes.model_table(model)[0].get("module", {})
            source = table.get("source", "") if isinstance(table, dict) else ""
            recipes.check_consent(source, model, place.allow_code)
    for text in (settings.loss, settings.reset, *named_metrics(settings.metrics).values()):
        if text:
            place.code(text)


def idle(asked: Mapping[str, TrainingRequest]) -> list[str]:
    """Return in which cells common settings have no effect, a sentence each.

    Raises:
        RecipeError: one has none in any cell.
    """
    names = list(asked)
    return [
        f"{text} has no effect in {', '.join(names[place] for place in places)}"
        for text, places in without_effect(asked.values()).items()
    ]


def check_same(known: Table, asked: Table, where: Path) -> None:
    """Refuse what is in a folder and was made with other settings.

    Raises:
        RecipeError: it was.
    """
    # what an older version did not know yet has its default
    made = Configuration.of(known, where)
    before = plain(made) | {"device": asked["device"]}  # one cell may have been trained anywhere
    if "name" not in asked["data"]["task"]:  # a run notes the task that its targets asked for
        before["data"]["task"].pop("name", None)
    now = Configuration.of(asked, where).code
    for part, code in made.code.items():
        for change in code.differs(now[part]) if part in now else ():
            raise RecipeError(
                f"{where}: was made by other code: {change}: give back that of then, give another "
                "folder, or delete the file"
            )
    if before != asked:
        raise RecipeError(
            f"{where}: was made with other settings: give another folder, or delete the file"
        )


def plain(configuration: Configuration) -> Table:
    """Return a configuration as JSON has it."""
    found: Table = json.loads(json.dumps(configuration.table()))
    return found
