"""``biograd plot``: figures of a run for paper, with their numbers beside."""

from __future__ import annotations

from pathlib import Path

import click

from biograd.commands.analyse import listed
from biograd.commands.options import Answer, Words, command
from biograd.errors import RecipeError

FORMATS = ("pdf", "png", "svg")


@command("plot")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--what",
    required=True,
    metavar="NAME,...",
    help="Of curves, loss, decorrelation, raster, rates, silence, psth, classes, rdm, probes, "
    "receptive_fields, gradients, alignment, weight_norms, weights, confusion.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Name of the figure, without ending.  [default: beside the run]",
)
@click.option(
    "--width",
    type=Words(["single", "double"]),
    default="double",
    show_default=True,
    metavar="single|double",
    help="A column of a journal, 85 or 180 mm.",
)
@click.option(
    "--format",
    "formats",
    type=Words(list(FORMATS)),
    multiple=True,
    metavar="pdf|png|svg",
    help="Repeatable.  [default: pdf and png]",
)
@click.option("--force", is_flag=True, help="Overwrite the figure if there is one.")
def plot(
    run: Path, what: str, out: Path | None, width: str, formats: tuple[str, ...], force: bool
) -> Answer:
    """Draw figures of a run.

    RUN is a run file.  All figures go onto one sheet of a journal's width, lettered; the numbers of
    each are a CSV file beside it.
    """
    from biograd.plots import run_figures as figures
    from biograd.runs.reader import open_run

    names = listed(what)
    if not names:
        raise RecipeError("--what: names at least one figure")
    endings = list(dict.fromkeys(formats)) or ["pdf", "png"]
    stem = out or run.with_suffix("")
    with open_run(run) as opened:
        written = figures.plot(opened, names, stem, width=width, formats=endings, force=force)
    record = {"run": run, "figures": names, "files": written}
    return Answer(record, "\n".join(str(path) for path in written))
