"""``biograd resume``: go on with a run, after an interruption or for more epochs."""

from __future__ import annotations

from pathlib import Path

import click

from biograd.commands.options import (
    Answer,
    command,
    own_metric_option,
    own_parts_options,
    quiet_option,
    run_device_option,
)
from biograd.commands.train import summary
from biograd.display.progress_display import ProgressDisplay


@command("resume", together=True)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Train to epoch N.  [default: as many as the run was started with]",
)
@own_parts_options
@own_metric_option
@run_device_option
@quiet_option
def resume(
    run: Path,
    epochs: int | None,
    metrics: tuple[str, ...],
    device: str | None,
    quiet: bool,
    **own: str | None,
) -> Answer:
    """Go on with a run that was interrupted, or train it for longer.

    RUN is a run file.  An interrupted run ends bit by bit as without the interruption (on the CPU).
    With more --epochs the learning rate's schedule is that of the longer run from there on.
    """
    from biograd import experiment
    from biograd.configuration import OwnParts

    with ProgressDisplay(quiet) as progress:
        parts = OwnParts.of(own["model"], own["dataset"], own["loss"], own["reset"], None, metrics)
        record = experiment.proceed(run, epochs, progress, parts, device=device)
    return Answer(record, summary(record))
