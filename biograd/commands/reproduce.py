"""``biograd reproduce``: repeat a run from its file and say whether it comes out the same."""

from __future__ import annotations

from pathlib import Path

import click

from biograd.commands.options import (
    Answer,
    command,
    data_dir_option,
    own_metric_option,
    own_parts_options,
    quiet_option,
    run_device_option,
)
from biograd.display.progress_display import ProgressDisplay


@command("reproduce")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the repeated run there.  [default: it is deleted]",
)
@own_parts_options
@own_metric_option
@run_device_option
@data_dir_option
@click.option("--offline", is_flag=True, help="Do not download; use what is in the data folder.")
@quiet_option
def reproduce(
    run: Path,
    out: Path | None,
    model: str | None,
    dataset: str | None,
    loss: str | None,
    reset: str | None,
    metrics: tuple[str, ...],
    device: str | None,
    data_dir: Path | None,
    offline: bool,
    quiet: bool,
) -> Answer:
    """Repeat a run from its file and compare.

    RUN is a run file, and nothing else is needed but the data, and the code of a module of your
    own; of a run that was interrupted everything up to the last commit is repeated.  Compared are
    the tensors of the last checkpoint, every row of metrics, every snapshot and every spike, bit by
    bit.  Where the processor, the number of threads, a version or the device is another one,
    numbers that agree within what rounding explains are enough.  If they do not, or if bits differ
    with nothing to explain it, or by other code, the exit code is 3.  Times are not compared.
    """
    from biograd import reproduction

    with ProgressDisplay(quiet) as progress:
        found = reproduction.reproduce(
            run,
            model,
            data=dataset,
            loss=loss,
            reset=reset,
            metrics=metrics,
            device=device,
            out=out,
            data_dir=data_dir,
            offline=offline or None,
            progress=progress,
        )
    return Answer(found.as_dict(), str(found), found.failure)
