"""Studies: a whole comparison in one TOML file, from the trainings to the table.

::

    cli/NAME.toml -> kind of study -> runs in a folder -> table, results.csv, results.json

To add a kind: write a file with a settings class and a ``run`` function, and name it in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from biograd import disk, recipes, user_code
from biograd.display.csv_text import as_csv
from biograd.errors import RecipeError, nearest
from biograd.placement import Placement
from biograd.progress import Progress
from biograd.recipes import Table

Row = dict[str, Any]


class Kind(NamedTuple):
    """Where a kind of study lives: a settings class and a function, imported when needed."""

    module: str
    settings: str


SAVED = "study.json"
"""The study itself, in its folder: from there it can go on."""

KINDS = {
    "training": Kind("biograd.studies.trainings", "Trainings"),
    "representation": Kind("biograd.studies.representation", "Representations"),
    "global_optimum": Kind("biograd.studies.global_optimum", "GlobalOptimum"),
    "block_coordinate": Kind("biograd.studies.coordinate_descent", "BlockCoordinateDescent"),
    "gradient_quality": Kind("biograd.studies.gradient_quality", "GradientQuality"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a study runs.

    Attributes:
        folder: for runs and results.
        data_dir: of the data sets; None: the user's cache.
        offline: do not download.
        placement: who runs the trainings, and how many at a time.
        task: the number of the only training that is to be done; None: all of them.
        own: data that are in no file, by the name that the study has for them; never written.
        models: classes, functions and modules that are objects, likewise.
        typed: names of code that were typed in this very command or call.
        allow_code: whether code that the study alone names may run.
        storage: URL of the database for the trials of searches, "": a journal in the folder.  It
            may hold a password, and is never written.
        digests: of own data that were looked at.
    """

    folder: Path
    data_dir: Path | None = None
    offline: bool = False
    placement: Placement = dataclasses.field(default_factory=Placement)
    task: int | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    allow_code: bool = False
    storage: str = ""
    digests: dict[Any, str] = dataclasses.field(default_factory=dict, compare=False)

    def data(self, name: str) -> Any:
        """Return the user's own data that a study calls ``name``; None: it is no name of such.

        Raises:
            RecipeError: they are not here.
        """
        if name in self.own:
            return self.own[name]
        if recipes.FUNCTION.fullmatch(name) and not name.startswith(recipes.OWN):
            return self.code(name)
        if name.startswith(recipes.OWN):
            raise RecipeError(
                f"study: {recipes.title(name)}: data of yours, which no file brings back: give "
                "them to biograd.compare(data=...)"
            )
        return None

    def model(self, name: str) -> Any:
        """Return the model that a study calls ``name``: its name, or an object of the user's.

        Raises:
            RecipeError: it is not here, or is code that nobody typed.
        """
        if name in self.models:
            return self.models[name]
        if name.startswith(recipes.OWN):
            raise RecipeError(
                f"study: {recipes.title(name)}: a model of yours, which no file brings back: give "
                "it to biograd.compare([...])"
            )
        return self.code(name) if user_code.is_named(name) else name

    def code(self, name: str) -> str:
        """Return the name of code that may run.

        Raises:
            RecipeError: a study alone names it, and may not.
        """
        if name not in self.typed and not self.allow_code:
            raise RecipeError(
                f"study: {name}: a file does not run code by itself: look at it, and give "
                "--allow-code"
            )
        return name


@dataclasses.dataclass(frozen=True)
class Report:
    """What a study found: a table and what is to be said of it.

    Attributes:
        columns: key of a cell to the heading of its column, in the order of the table.
        rows: one for each line of the table; numbers as numbers, intervals as pairs.
        notes: sentences under it.
        tables: further ones by name, each a CSV file of its own.
        failures: what could not be trained, and why.
        trainings: how many there were to be.
        fine: whether results are numbers, not per cents: more decimals are shown.
    """

    columns: Mapping[str, str]
    rows: list[Row]
    notes: list[str] = dataclasses.field(default_factory=list)
    tables: Mapping[str, list[Row]] = dataclasses.field(default_factory=dict)
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    trainings: int = 0
    fine: bool = False

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "rows": self.rows,
            "notes": self.notes,
            **self.tables,
            "failures": self.failures,
        }


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


def resumed(folder: Path) -> str:
    """Return the name under which ``run`` finds the study of a folder.

    Raises:
        RecipeError: no study was begun there.
    """
    path = folder / SAVED
    if not path.is_file():
        raise RecipeError(f"{folder}: no study was begun there ({SAVED} is missing)")
    return str(path)


def run(table: Table, path: Path, place: Place, watcher: Progress) -> Report:
    """Run a study, write its results into the folder and return its report.

    What is in the folder already is not run again, so that an interrupted study goes on.

    Args:
        table: of the study, see ``read``.
        path: that messages name.

    Raises:
        RecipeError: the study is not valid.
    """
    placed = place.placement
    apart = placed.workers != 1 or placed.engine != "local" or place.task is not None
    if apart and table.get("kind", "training") != "training":
        raise RecipeError(
            f"{path}: only a study of kind 'training' has parts: leave --workers, --engine and "
            "--task away"
        )
    module, settings = settle(table, path)
    if table.get("kind", "training") != "training" and placed.device not in ("auto", "cpu"):
        raise RecipeError(
            f"--device {placed.device}: a study of kind {table['kind']!r} is done on the CPU"
        )
    report: Report = module.run(settings, place, watcher)
    if place.task is None:
        with disk.writing(place.folder, "run the study again"):
            write(report, place.folder)
    return report


def settle(table: Table, path: Path) -> tuple[Any, Any]:
    """Return the module of a study's kind, and the study's settings.

    Raises:
        RecipeError: the study is not valid.
    """
    kind = KINDS[table.get("kind", "training")]
    module = importlib.import_module(kind.module)
    given = {key: value for key, value in table.items() if key != "kind"}
    return module, recipes.construct(getattr(module, kind.settings), given, path)


def write(report: Report, folder: Path) -> None:
    """Write ``results.json``, ``results.csv``, and a CSV file for every further table."""
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / "results.json", report.record())
    for name, rows in {"results": report.rows, **report.tables}.items():
        if rows:
            disk.write_bytes(folder / f"{name}.csv", as_csv(rows).encode())
        else:  # of an earlier table
            (folder / f"{name}.csv").unlink(missing_ok=True)
