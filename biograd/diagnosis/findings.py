"""What a probe finds: numbers, by layer and over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from biograd.diagnosis.quality import Measure, Quality


@dataclasses.dataclass(frozen=True)
class Layer:
    """What was found at one site.

    Attributes:
        weight_norm: of its weights, without the biases.
        units: of its population; channels of a convolution.
        silent: share of the units that are inactive for every example; None for the readout.
        saturated: share of the active units that are at an end of their range nine times in ten.
        update: norm of the next step of the optimiser by that of the weights; None without one.
    """

    kind: Literal["hidden", "readout", "other"]
    quality: Quality
    weight_norm: float
    units: int = 0
    silent: float | None = None
    saturated: float | None = None
    update: float | None = None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """The same draws with noise of another size.

    Attributes:
        cosine: of one draw, all hidden layers together.
        gain: by how much it is above that of the estimator as it is, draw by draw.
    """

    sigma: float
    cosine: Measure
    gain: Measure


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a probe found, in numbers.

    Attributes:
        reference: what the estimate was compared with, in words.
        informative: share of the noisy copies whose loss differs from the clean one.
        copies: of each example, the clean one included; 1 if the estimator makes none.
        dimensions: in which each example's gradient is sought by the copies; 0: not by copies.
        layers: by site, in the order of the data flow.
        hidden: all hidden layers together; None if there is none.
        caveat: where the rule was measured to learn less than a readout on frozen layers.
        steps: in which the hidden sites' currents are perturbed; 1: no time, or no noise there.
        time_bin: number of steps in which the noise stays constant; None: all.
        shared: name of a site to its layers, if several feed one current, with one noise.
        batch_norm: whether batch normalisation takes its statistics from these examples.
        credit: whose credit the parameters have, and which they are, a line each.
        neighbours: a quarter and four times the size of the noise, if the estimator has one.
    """

    estimator: str
    substrate: str
    draws: int
    examples: int
    step: int
    loss: float
    informative: float
    copies: int
    dimensions: int
    sigma: float | None
    method: str
    learns_hidden: bool
    batch_norm: bool
    layers: Mapping[str, Layer]
    hidden: Quality | None
    overall: Quality
    reference: str = ""
    neighbours: tuple[Neighbour, ...] = ()
    credit: tuple[str, ...] = ()
    caveat: str = ""
    steps: int = 1
    time_bin: int | None = None
    shared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
