"""``biograd run``: a whole study from one TOML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biograd import disk, ranks
from biograd.commands.board import Board
from biograd.commands.options import (
    Answer,
    Words,
    allow_code_option,
    command,
    data_dir_option,
    device_option,
    quiet_option,
)
from biograd.commands.standing import check_alone, standing
from biograd.errors import RecipeError, word
from biograd.placement import ENGINES
from biograd.user_code import is_named

if TYPE_CHECKING:
    from rich.console import RenderableType

    from biograd.studies import Place, Report


def placing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where trainings run."""
    options = [
        click.option(
            "--workers",
            "-w",
            type=click.IntRange(1),
            metavar="N",
            help="Trainings at a time, each in a process of its own; 1: in this process.  "
            "[default: one for each core; no limit for SLURM]",
        ),
        click.option(
            "--engine",
            type=Words(list(ENGINES)),
            default="local",
            show_default=True,
            metavar="|".join(ENGINES),
            help="Who places the trainings: this machine, SLURM by submitit, or Dask.",
        ),
        device_option,
        click.option(
            "--address", metavar="URL", help="Of a Dask scheduler.  [default: workers here]"
        ),
        click.option(
            "--job",
            "job",
            multiple=True,
            metavar="KEY=VALUE",
            help="A setting of SLURM's jobs, as in partition=gpu, gres=gpu:1, time=60 (minutes), "
            "setup='module load cuda' (a line each), nodes=2 or tasks_per_node=4 (processes that "
            "train together), cluster=local, or any slurm_NAME of submitit's; repeatable.",
        ),
        click.option(
            "--storage",
            metavar="URL",
            help="Where the trials of a search are kept, as in sqlite:///search.db; several "
            "processes may search there together.  [default: the study's folder]",
        ),
        allow_code_option,
        data_dir_option,
        click.option(
            "--offline", is_flag=True, help="Do not download; use what is in the data folder."
        ),
        quiet_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command("run", together=True)
@click.argument("study", metavar="STUDY")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where runs and results go.  [default: studies/NAME]",
)
@click.option("--quick", is_flag=True, help="The same study, shortened to seconds or minutes.")
@click.option(
    "--task",
    type=click.IntRange(0),
    metavar="N",
    help="Do only the N-th training, counted from 0, and write no results (for job arrays).",
)
@click.option(
    "--status",
    is_flag=True,
    help="Run nothing: say which trainings in the study's folder are done, run, or failed.",
)
@placing_options
def run(
    study: str,
    out: Path | None,
    quick: bool,
    task: int | None,
    status: bool,
    quiet: bool,
    **places: Any,
) -> Answer:
    """Run a whole study and print its table.

    STUDY is a name that `biograd list studies` shows, or a TOML file.  The folder receives every
    run file, results.csv, results.json and, of trainings, set.h5, report.html and a picture; what
    is there already is not run again, so that an interrupted study goes on where it stopped.  A
    process that is killed is started again, and a training that fails does not stop the others.
    """
    from biograd import studies

    if task is None:
        ranks.refuse("`biograd run` without --task")
    table, path = studies.read(study, quick)  # a misspelt name should not wait for torch
    folder = out or Path("studies") / f"{path.stem}{'-quick' if quick else ''}"
    if status:
        check_alone("study", "out", "quick")
        return standing(folder)
    if quick:
        table = {**table, "description": f"{table.get('description', path.stem)} [shortened]"}
    whole = table.get("kind", "training") != "training" or task is not None
    if places["workers"] is None and whole:
        places["workers"] = 1
    return conduct(table, path, place(folder, task=task, **places), quiet)


def place(
    folder: Path,
    *,
    workers: int | None,
    engine: str,
    address: str | None,
    job: tuple[str, ...],
    data_dir: Path | None,
    offline: bool,
    device: str = "auto",
    storage: str | None = None,
    task: int | None = None,
    allow_code: bool = False,
    typed: frozenset[str] = frozenset(),
) -> Place:
    """Return where a study runs, from the options of the console."""
    from biograd.placement import Placement
    from biograd.studies import Place
    from biograd.studies.trial_storage import check_storage

    disk.check_name(folder)
    if address and workers:
        raise RecipeError("--address: the cluster has workers of its own: leave --workers away")
    placement = Placement(engine, workers, address, job, folder, device)
    return Place(
        folder,
        data_dir,
        offline,
        placement,
        task,
        typed=typed,
        allow_code=allow_code,
        storage="" if storage is None else check_storage(storage),
    )


def conduct(table: dict[str, Any], path: Path, where: Place, quiet: bool) -> Answer:
    """Run a study and return what is printed of it."""
    from biograd import studies
    from biograd.studies.comparing import failed

    alone = where.placement.engine == "local" and where.placement.workers == 1
    with Board(quiet, live=not alone) as progress:
        try:
            report = studies.run(table, path, where, progress)
        except (KeyboardInterrupt, SystemExit):
            if (where.folder / studies.SAVED).exists():
                known = where.allow_code or any(map(is_named, where.typed))
                code = " --allow-code" if known else ""
                progress.note(f"go on with: biograd compare --resume {word(where.folder)}{code}")
            raise
    name = where.folder.name if path.name == studies.SAVED else path.stem
    record = {"study": name, "folder": str(where.folder), **report.record()}
    text = describe(report, str(table.get("description") or name), where.folder)
    return Answer(record, text, error=failed(report, where.folder))


def describe(report: Report, title: str, folder: Path) -> RenderableType:
    """Return the tables of a study and what is to be said of them."""
    from rich.console import Group
    from rich.text import Text

    from biograd.studies.results.writing import COSTLY

    results = {key: name for key, name in report.columns.items() if key not in COSTLY}
    parts: list[RenderableType] = [Text(title), "", _table(report.rows, results, report.fine)]
    parts += ["", *map(Text, report.notes)]
    contrasts = report.tables.get("contrasts", [])
    if contrasts:
        rows = [{**row, "what": f"{row['level']} against {row['against']}"} for row in contrasts]
        parts += ["", _table(rows, CONTRASTS, report.fine)]
    costs = {key: name for key, name in report.columns.items() if key in COSTLY}
    if costs:
        parts += ["", _table(report.rows, {"cell": "costs, means", **costs})]
    if report.failures:
        lines = [f"{one['training']}: {one['reason']}" for one in report.failures]
        parts += ["", "not trained", *(Text(f"  {line}") for line in lines)]
    return Group(*parts, "", Text(f"runs: {folder}"))


CONTRASTS = {
    "what": "all else the same",
    "cells": "cells",
    "difference": "difference",
    "difference_interval": "95 %",
    "p_holm": "p",
    "effect": "effect",
}


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], fine: bool = False
) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from biograd.studies.results.writing import write_cell

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, name in enumerate(columns.values()):
        table.add_column(Text(name), justify="right" if place else "left", no_wrap=bool(place))
    for row in rows:
        table.add_row(*(Text(write_cell(key, row.get(key), fine)) for key in columns))
    return table
