"""``biograd export``: hand a run to other tools, as a network or as its spikes."""

from __future__ import annotations

from pathlib import Path

import click

from biograd.commands.options import Answer, Words, command, own_parts_options
from biograd.errors import RecipeError

ENDINGS = {"nir": ".nir", "sonata": ".sonata.h5"}
"""What the file is called if nobody says it, by format."""


@command("export")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format",
    "kind",
    type=Words(list(ENDINGS)),
    metavar="|".join(ENDINGS),
    required=True,
    help="nir: the trained network, for other simulators and chips; sonata: the recorded spikes.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file.  [default: beside the run]",
)
@click.option(
    "--subtract",
    type=Words(["loop", "node"]),
    metavar="loop|node",
    help="nir: how a spike that takes the threshold from the potential is written: as a loop, "
    "which is exact, or as a node that resets to zero, which more simulators can read.  "
    "[default: loop]",
)
@own_parts_options
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
def export(
    run: Path,
    kind: str,
    out: Path | None,
    subtract: str | None,
    force: bool,
    **own: str | None,
) -> Answer:
    """Export a run for other tools.

    RUN is a run file.  A part of a network that the format cannot express is refused by name.
    """
    from biograd.runs.reader import open_run

    if subtract is not None and kind != "nir":
        raise RecipeError("--subtract: only with --format nir")
    given = {
        "network" if k == "model" else "data" if k == "dataset" else k: v
        for k, v in own.items()
        if v is not None
    }
    if given and kind != "nir":
        name = next(name for name, value in own.items() if value is not None)
        raise RecipeError(f"--{name}: only with --format nir: spikes are in the file")
    with open_run(run) as opened:
        target = out or run.with_suffix(ENDINGS[kind])
        if kind == "nir":
            from biograd.interchange import export_nir

            how = "node" if subtract == "node" else "loop"
            written = export_nir(opened, target, subtract=how, force=force, own=given)  # type: ignore[arg-type]
        else:
            from biograd.runs.sonata import export_sonata

            written = export_sonata(opened, target, force=force)
    record = {"run": opened.path, "format": kind, "file": written}
    return Answer(record, f"{written}")
