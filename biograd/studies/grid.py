"""Cells of a comparison: listed one by one, or the product of models, rules and more.

::

    models x datasets x estimators x decorrelation  ->  cells, and a control for each model
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from biograd import recipes
from biograd.errors import RecipeError, nearest

CONTROL = "frozen_hidden"


@dataclasses.dataclass(frozen=True)
class Listed:
    """A cell as a study's file lists it; what it leaves out is the study's."""

    model: str | None = None
    dataset: str | None = None
    estimator: str | None = None
    set: tuple[str, ...] = ()
    """``KEY=VALUE``, as on the command line, after the study's own."""
    published: float | None = None
    """The figure of the literature, in per cent."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Axes whose product is trained; an empty one is the study's, or each model's own."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ()
    decorrelate: tuple[str, ...] = ()
    """Rules of ``decorrelation.rule``, "off" among them."""
    control: bool = True
    """Also train every model with frozen hidden layers."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of a comparison: what is trained, with every seed.

    Attributes:
        estimator: None: the model's own.
        assignments: ``KEY=VALUE``, after the study's own.
        factors: name of an axis that the grid varies to the level of this cell.
    """

    name: str
    model: str
    dataset: str
    estimator: str | None = None
    assignments: tuple[str, ...] = ()
    published: float | None = None
    factors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def control(self) -> bool:
        """Whether only the readout learns."""
        return self.estimator == CONTROL


def expand(grid: Grid, model: str, dataset: str, estimator: str | None) -> list[Cell]:
    """Return the cells of a grid, the first axis outside; controls come last.

    Args:
        model, dataset, estimator: for the axes that the grid leaves empty.

    Raises:
        RecipeError: an axis names a level twice.
    """
    axes: dict[str, tuple[str | None, ...]] = {
        "dataset": grid.datasets or (dataset,),
        "model": grid.models or (model,),
        "estimator": grid.estimators or (estimator,),
        "decorrelation": grid.decorrelate or (None,),
    }
    for name, levels in axes.items():
        twice = {level for level in levels if levels.count(level) > 1}
        if twice:
            raise RecipeError(f"grid: {name} {sorted(map(str, twice))[0]!r} is named twice")
    shown = {"model": titles(axes["model"]), "dataset": titles(axes["dataset"])}
    varied = [name for name, levels in axes.items() if len(levels) > 1]
    cells = []
    for levels in itertools.product(*axes.values()):
        level = dict(zip(axes, levels, strict=True))
        cells.append(_cell(level, varied, shown))
    if grid.control and CONTROL not in axes["estimator"]:
        named = [name for name in axes if name in varied or name == "estimator"]
        others = {**axes, "estimator": (CONTROL,)}
        for levels in itertools.product(*others.values()):
            cells.append(_cell(dict(zip(axes, levels, strict=True)), named, shown))
    return cells


def titles(names: Sequence[str | None]) -> dict[str, str]:
    """Return what models or datasets are called, those of one name with their files before it."""
    short = {name: recipes.title(name) for name in names if name is not None}
    several = [title for title in short.values() if [*short.values()].count(title) > 1]
    return {name: _with_file(name) if title in several else title for name, title in short.items()}


def _with_file(name: str) -> str:
    place, _, last = name.rpartition(":")
    return f"{Path(place).stem}.{last}" if place.endswith(".py") else name


def _cell(
    level: Mapping[str, str | None], varied: list[str], titles: Mapping[str, Mapping[str, str]]
) -> Cell:
    model, data = str(level["model"]), str(level["dataset"])
    names = {
        "dataset": titles["dataset"][data],
        "model": titles["model"][model],
        "estimator": (level["estimator"] or "").replace(CONTROL, "frozen hidden"),
        "decorrelation": f"decorrelation {level['decorrelation']}",
    }
    rule = level["decorrelation"]
    return Cell(
        name=" · ".join(names[axis] for axis in varied) or names["model"],
        model=model,
        dataset=data,
        estimator=level["estimator"],
        assignments=() if rule is None else (f"decorrelation.rule={rule}",),
        factors={
            axis: titles.get(axis, {}).get(str(level[axis]), str(level[axis])) for axis in varied
        },
    )


def listed(
    tables: Mapping[str, object], model: str, dataset: str, estimator: str | None
) -> list[Cell]:
    """Return the cells that a study's file lists.

    Raises:
        RecipeError: a cell is not valid.
    """
    cells = []
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise RecipeError(f"study: cells.{name} = {table!r}: must be a table")
        found = recipes.construct(Listed, table, "study", f"cells.{name}")
        cells.append(
            Cell(
                name=name,
                model=found.model or model,
                dataset=found.dataset or dataset,
                estimator=found.estimator or estimator,
                assignments=found.set,
                published=found.published,
            )
        )
    return cells


def check(cells: list[Cell], baseline: str | None) -> None:
    """Refuse names that no cell of a comparison can have, before hours are spent.

    Raises:
        RecipeError: no cell at all, two of one name, or an unknown model, dataset, estimator or
            baseline.
    """
    if not cells:
        raise RecipeError("study: no cells: name models and estimators, or list cells")
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"study: two cells are named {name!r}")
    from biograd.estimators import ESTIMATORS

    for cell in cells:
        if not cell.model.startswith(recipes.OWN):
            recipes.model_table(cell.model)
        if not cell.dataset.startswith(recipes.OWN):
            recipes.dataset_table(cell.dataset)
        if cell.estimator is not None:
            ESTIMATORS.find(cell.estimator, f"study: {cell.name}: estimator")
    if baseline is not None and baseline not in names:
        raise RecipeError(f"study: baseline = {baseline!r}: {nearest(baseline, names)}")
