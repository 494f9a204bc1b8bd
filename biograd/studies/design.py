"""The design of a study of trainings: its cells, which differ in a factor, and its seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated

from biograd.configuration import without_effect
from biograd.errors import RecipeError
from biograd.recipes import Range, Table
from biograd.studies import grid
from biograd.studies.grid import Cell, Grid
from biograd.studies.search import Search
from biograd.training_request import TrainingRequest
from biograd.user_code import is_named


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


def stem(name: str) -> str:
    """Return the name of a cell as the names of its files begin."""
    return re.sub(r"\W+", "-", name).strip("-") or "cell"


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
