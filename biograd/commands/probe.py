"""``biograd probe``: how good is the gradient estimate of a run, and why does it not learn?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from biograd.commands.options import Answer, Words, command, own_parts_options, run_device_option

REFERENCES = ("auto", "backpropagation", "finite_difference")


@command("probe")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--step",
    type=click.IntRange(0),
    metavar="N",
    help="At the checkpoint of this step; 0 is before the training.  [default: the last one]",
)
@click.option(
    "--draws",
    type=click.IntRange(2),
    metavar="N",
    default=16,
    show_default=True,
    help="How often the gradient is estimated.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    metavar="N",
    default=64,
    show_default=True,
    help="Examples of the training data, the classes in turn.",
)
@click.option(
    "--reference",
    type=Words(list(REFERENCES)),
    metavar="|".join(REFERENCES),
    default="auto",
    show_default=True,
    help="What the estimate is compared with; auto: finite differences where spikes have no "
    "derivative.",
)
@own_parts_options
@run_device_option
def probe(run: Path, model: str | None, dataset: str | None, **choices: Any) -> Answer:
    """Say how good a run's gradient estimate is, and why it does not learn.

    RUN is a run file.  For every layer: the cosine of the estimate to the gradient, of one draw
    and of the mean of all; the norm of the estimate and the share of the signs that agree; squared
    bias and variance by the squared norm of the gradient; that norm; the shares of the units that
    are silent or saturated; and a step at the full learning rate by the size of the weights.
    Then, line by line, what stands out and what to change.
    """
    from biograd.calls import diagnose
    from biograd.runs.reader import open_run

    with open_run(run) as opened:
        found = diagnose(opened, model, data=dataset, **choices)
        record = {"run": opened.path, **found.as_dict()}
    return Answer(record, str(found))
