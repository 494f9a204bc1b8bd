"""What is read of a population, in the terms of NIR, and what a network keeps of its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from biograd.interchange.nir_neuron import Array

Read = Literal["mean", "sum", "last", "steps"]
READS: dict[str, tuple[bool, Read]] = {
    "membrane": (True, "mean"),
    "filtered_rate": (True, "last"),
    "rate": (False, "sum"),
    "potential": (False, "mean"),
}
"""Kinds of readout: whether through a leaky integrator, and what of its course is read."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a network keeps of the graph that it was made from, so that it is written as that graph.

    Attributes:
        names: of nodes, by the path of the module that they are, ``.part`` for one of several.
        shapes: in which the units of the input and the populations lie.
        weights: of the populations whose resistance holds the factor on their input, too.
        resistance: of the readout's leaky integrator; None: the one that makes its mean biograd's
            readout.
        learned: what was noted of the constants that every neuron had learned, by population.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    resistance: float | None = None
    learned: Mapping[str, str] = dataclasses.field(default_factory=dict)


def origin_of(network: Any) -> Origin:
    """Return what a network keeps of its graph."""
    found = network.__dict__.get("origin")
    return found if isinstance(found, Origin) else Origin()


def weighing(left: float | None, how: Read, steps: int) -> tuple[float, float]:
    """Return how biograd's readout follows from what NIR reads: factors of weight and bias.

    With ``x[t] = W s[t] + b`` read over T steps, through a leaky integrator of resistance r whose
    decay in a step is k, or not (r = 1), the output is ``(r / R) W sum_t c[t] s[t] + r m b`` with
    the weights c of ``circuit.readouts``:

    ===================  ====================  ==========================  ===============
    integrator, read     readout               R                           m
    ===================  ====================  ==========================  ===============
    yes, mean            membrane              T / mean_t (1 - k^(t+1))    T / R
    yes, last            filtered_rate         1 / (1 - k)                 1 - k^T
    no, sum              rate                  1                           T
    no, mean             potential             1                           1
    either, steps        LeakyReadout          1                           1
    ===================  ====================  ==========================  ===============

    Args:
        left: the decay k; None: there is no integrator.

    Returns:
        R and m.
    """
    if how == "steps":
        return 1.0, 1.0
    if left is None:
        return 1.0, float(steps) if how == "sum" else 1.0
    if how == "last":
        return 1 / (1 - left), 1 - left**steps
    mean = float(np.mean(1 - left ** np.arange(steps, 0, -1.0)))
    return steps / mean, mean
