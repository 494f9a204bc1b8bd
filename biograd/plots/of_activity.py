"""Figures of how active layers were over training: rates and silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import of_run
from biograd.plots.of_learning import by_step
from biograd.plots.panel import Panel
from biograd.plots.style import (
    largest,
    layer_title,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    pass

Array = NDArray[Any]


def rates(run: Run) -> Panel:
    """Return median and quartiles of the units' activity by snapshot."""
    found = of_run.rates(run)
    spiking = any(key.endswith("rate_hz") for key in found)
    by_layer = {key.rpartition("/")[0]: values for key, values in found.items()}
    quartiles = {n: tuple(np.nanpercentile(v, (25, 75), axis=1)) for n, v in by_layer.items()}
    median = {n: np.nanmedian(v, axis=1) for n, v in by_layer.items()}
    probes = len(run.probe.index) if run.probe is not None else 0
    what = "Model time: a step counts as its dt. " if spiking else ""
    return by_step(
        "rates",
        "Firing rate: median and quartiles" if spiking else "Activity: median and quartiles",
        "rate of a unit (Hz)" if spiking else "activity of a unit",
        f"{what}Bars: quartiles of the units, silent ones included, over {probes} stimuli; the "
        "axis of the steps is broken before the first.",
        of_run.steps_of(run),
        median,
        quartiles=quartiles,
    )


def silence(run: Run) -> Panel:
    """Return the share of units that no stimulus makes active, by snapshot."""
    found = {key.rpartition("/")[0]: 100 * v for key, v in of_run.silence(run).items()}
    units = ", ".join(f"{layer_title(n)} {len(run.layers[n].units)}" for n in found)
    probes = len(run.probe.index) if run.probe is not None else 0
    top = max(5.0, 1.15 * max(largest(v, 0.0) for v in found.values()))
    return by_step(
        "silence",
        f"Units silent for all {probes} stimuli",
        "silent units (%)",
        f"Units: {units}. Other stimuli may make them active.",
        of_run.steps_of(run),
        found,
        limits=(-0.02 * top, top),
    )
