"""``biograd export``: hand a run to other tools, as a network, its spikes or its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from biograd.commands.options import Answer, Words, command, own_parts_options
from biograd.errors import RecipeError

ENDINGS = {
    "nir": ".nir",
    "sonata": ".sonata.h5",
    "nwb": ".nwb",
    "csv": ".csv",
    "netcdf": ".nc",
    "tensorboard": ".tensorboard",
}
"""What the file is called if nobody says it, by format."""


def _exporter(kind: str) -> Callable[..., Path]:
    """Return what writes spikes or tables in a format."""
    from biograd.exporting import nwb_export, tables_export
    from biograd.runs.sonata import export_sonata

    writers: dict[str, Callable[..., Path]] = {
        "sonata": export_sonata,
        "nwb": nwb_export.export_nwb,
        "csv": tables_export.export_csv,
        "netcdf": tables_export.export_netcdf,
        "tensorboard": tables_export.export_tensorboard,
    }
    return writers[kind]


@command("export")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format",
    "kind",
    type=Words(list(ENDINGS)),
    metavar="|".join(ENDINGS),
    required=True,
    help="nir: the trained network, for other simulators and chips; sonata: the recorded spikes; "
    "nwb: those of the last snapshot, with trials, stimuli and weights; csv: a folder of tables; "
    "netcdf: scalars, measures and activity; tensorboard: scalars.",
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
            written = _exporter(kind)(opened, target, force=force)
    record = {"run": opened.path, "format": kind, "file": written}
    return Answer(record, f"{written}")
