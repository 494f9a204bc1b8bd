"""``biograd run``: a whole study from one TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from biograd.commands.layout import columns
from biograd.commands.options import Answer, command, data_dir_option, quiet_option
from biograd.commands.progress import Progress


@command("run")
@click.argument("study", metavar="STUDY")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where runs and results go.  [default: studies/NAME]",
)
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Trainings at a time, each in a process of its own.  [default: 1]",
)
@click.option("--quick", is_flag=True, help="The same study, shortened to seconds or minutes.")
@data_dir_option
@click.option("--offline", is_flag=True, help="Do not download; use what is in the data folder.")
@quiet_option
def run(
    study: str,
    out: Path | None,
    workers: int,
    quick: bool,
    data_dir: Path | None,
    offline: bool,
    quiet: bool,
) -> Answer:
    """Run a whole study and print its table.

    STUDY is a name that `biograd list studies` shows, or a TOML file.  The folder receives every
    run file, results.csv and results.json; what is there already is not run again, so that an
    interrupted study goes on where it stopped.  With several workers a process that is killed is
    started again, and a training that fails does not stop the others.
    """
    from biograd import studies

    _table, path = studies.read(study, quick)  # a misspelt name should not wait for torch
    folder = out or Path("studies") / f"{path.stem}{'-quick' if quick else ''}"
    with Progress(quiet) as progress:
        place = studies.Place(folder, data_dir, offline, workers)
        report, table = studies.run(study, place, progress, quick=quick)
    record = {"study": path.stem, "folder": str(folder), "rows": report.rows, "notes": report.notes}
    header = list(report.columns.values())
    lines = [[_cell(row.get(key)) for key in report.columns] for row in report.rows]
    title = str(table.get("description", path.stem)) + (" [shortened]" if quick else "")
    text = "\n".join([title, "", columns(lines, header), "", *report.notes, f"runs: {folder}"])
    return Answer(record, text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.005 or value == 0 else f"{value:.2e}"
    return str(value)
