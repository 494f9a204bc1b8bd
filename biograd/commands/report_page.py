"""``biograd report``: a run, or several, as one page that needs nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from biograd.commands.options import Answer, command
from biograd.errors import RecipeError


@command("report")
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The page.  [default: beside the run, of several report.html beside the first]",
)
@click.option("--force", is_flag=True, help="Overwrite the page if there is one.")
def report(runs: tuple[Path, ...], out: Path | None, force: bool) -> Answer:
    """Show runs on a page.

    RUN is a run file, also of a run that goes on or was killed, or the set.h5 or folder of a study.
    One run: what it learned, did, holds and cost, and how it is repeated.  Several: results with
    intervals, paired differences, courses, what the layers hold.  The page needs no network and
    runs no script.
    """
    from biograd import disk
    from biograd.disk.atomic import check_target
    from biograd.pages.run_page import run_page
    from biograd.runs.reader import open_run
    from biograd.studies.results.gathering import comparison_page, paths_of

    paths, cells = paths_of(runs)
    if not paths:
        raise RecipeError("RUN: the set names no run")
    single = len(paths) == 1
    target = out or (paths[0].with_suffix(".html") if single else paths[0].with_name("report.html"))
    check_target(target, force)
    if single:
        with open_run(paths[0]) as opened:
            text = run_page(opened)
    else:
        names = [path.name for path in paths]
        text = comparison_page(paths, cells, shlex.join(["biograd", "report", *names]))
    with disk.writing(target, "report again"):
        disk.write_bytes(target, text.encode())
    record = {"runs": list(paths), "file": target, "bytes": len(text.encode())}
    return Answer(record, f"{target}")
