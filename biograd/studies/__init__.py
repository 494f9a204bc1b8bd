"""Studies: a whole comparison in one TOML file, from the trainings to the table.

::

    cli/NAME.toml -> kind of study -> runs in a folder -> table, results.csv, results.json

To add a kind: write a file with a settings class and a ``run`` function, and name it in ``KINDS``.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from biograd import recipes
from biograd.errors import RecipeError, nearest
from biograd.recipes import Table


class Progress(Protocol):
    """Whoever shows how a study goes on."""

    def begin(self, total_steps: int, title: str) -> None:
        """Start a training of so many steps."""

    def step(self, record: dict[str, Any]) -> None:
        """Show one step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show one epoch."""

    def note(self, text: str) -> None:
        """Show a line of text."""


class Kind(NamedTuple):
    """Where a kind of study lives: a settings class and a function, imported when needed."""

    module: str
    settings: str


KINDS = {
    "training": Kind("biograd.studies.training", "Trainings"),
    "representation": Kind("biograd.studies.representation", "Representations"),
    "global_optimum": Kind("biograd.studies.global_optimum", "GlobalOptimum"),
    "block_coordinate": Kind("biograd.studies.block_coordinate", "BlockCoordinateDescent"),
    "gradient_quality": Kind("biograd.studies.gradient_quality", "GradientQuality"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a study runs.

    Attributes:
        folder: for runs and results.
        data_dir: of the data sets; None: the user's cache.
        offline: do not download.
        workers: trainings at a time, each in a process of its own if there are several.
    """

    folder: Path
    data_dir: Path | None = None
    offline: bool = False
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What a study found: a table and what is to be said of it.

    Attributes:
        columns: key of a cell to the heading of its column, in the order of the table.
        rows: one for each line of the table; numbers as numbers.
        notes: sentences under it.
    """

    columns: Mapping[str, str]
    rows: list[dict[str, Any]]
    notes: list[str] = dataclasses.field(default_factory=list)


def read(name: str, quick: bool = False) -> tuple[Table, Path]:
    """Return the table and path of a study, given a shipped name or a path to a TOML file.

    Args:
        quick: lay the file's ``[quick]`` table on it: the same study, shortened.

    Raises:
        RecipeError: no such study, not TOML, or no kind that is known.
    """
    table, path = recipes.read(name, "cli")
    short = table.pop("quick", {})
    kind = table.get("kind", "training")
    if kind not in KINDS:
        raise RecipeError(f"{path}: kind = {kind!r}: {nearest(kind, KINDS)}")
    return (recipes.merge(table, short) if quick else table), path


def run(
    name: str, place: Place, progress: Progress, *, quick: bool = False
) -> tuple[Report, Table]:
    """Run a study, write its results into the folder and return its report and its table.

    What is in the folder already is not run again, so that an interrupted study goes on.

    Raises:
        RecipeError: the study's file is not valid.
    """
    table, path = read(name, quick)
    kind = KINDS[table.get("kind", "training")]
    module = importlib.import_module(kind.module)
    given = {key: value for key, value in table.items() if key not in ("kind", "description")}
    if place.workers > 1 and kind is not KINDS["training"]:
        raise RecipeError(f"--workers: only a study of kind 'training' has parts, not {path}")
    settings = recipes.construct(getattr(module, kind.settings), given, path)
    place.folder.mkdir(parents=True, exist_ok=True)
    report: Report = module.run(settings, place, progress)
    write(report, place.folder)
    return report, table


def write(report: Report, folder: Path) -> None:
    """Write ``results.csv`` and ``results.json``."""
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        keys = list(dict.fromkeys(key for row in report.rows for key in row))
        writer = csv.DictWriter(file, keys, restval="")
        writer.writeheader()
        writer.writerows(report.rows)
    text = json.dumps({"rows": report.rows, "notes": report.notes}, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
