"""Pattern generation: frozen spikes in, a sum of sinusoids out, one and the same trial."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from torch import Tensor

from biograd.checking import Checked, Positive, Range
from biograd.data.request import Parts, Request, Rows, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.randomness import generator

NAME = "pattern_generation"


@dataclasses.dataclass(frozen=True)
class PatternSettings(Checked):
    """Of the pattern; ``shape`` of the recipe says how many inputs there are.

    Attributes:
        duration_ms: of a trial; its steps are those of the model's encoding.
        frequencies_hz: of the sinusoids.
        rate_hz: of the inputs.
        repeats: how often an epoch shows the trial.
        seed: of the spikes, the amplitudes and the phases.
    """

    duration_ms: Positive = 1000.0
    frequencies_hz: tuple[Positive, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    rate_hz: Positive = 50.0
    repeats: Rows = 50
    seed: Annotated[int, Range(0)] = 0


@with_settings(PatternSettings)
def read(request: Request, settings: PatternSettings) -> Parts:
    """Return the trial, inputs 0 or 1 ``[N, T, units]`` and targets ``[N, T, 1]`` up to 1 in size.

    ``y(t) = sum_k a_k sin(2 pi f_k t + phi_k)``, ``a_k`` uniform from 0.5 to 2, less ``y(0)``, over
    ``max |y|``.  Training and test rows are one trial: what is asked is whether it can be learned.

    Raises:
        RecipeError: a setting is not valid, or the trial is not a whole number of steps.

    Source: G. Bellec et al., Nature Communications 11:3625 (2020).
    """
    request.without_files()
    steps = request.steps("duration_ms", settings.duration_ms)
    stream = generator(settings.seed, NAME, "spikes")
    chance = request.chance("rate_hz", settings.rate_hz)
    inputs = torch.rand(steps, request.units(), generator=stream) < chance
    targets = pattern(settings, steps, request.dt_ms)
    trial = Arrays(inputs[None].float(), targets[None], timed=True)
    shown = trial.rows(torch.zeros(settings.repeats, dtype=torch.int64))
    return Parts({"train": shown, "test": trial})


def pattern(settings: PatternSettings, steps: int, dt_ms: float) -> Tensor:
    """Return the target ``[steps, 1]``."""
    frequencies = torch.tensor(settings.frequencies_hz, dtype=torch.float64)
    stream = generator(settings.seed, NAME, "pattern")
    drawn = torch.rand(2, len(frequencies), generator=stream, dtype=torch.float64)
    amplitudes, phases = 0.5 + 1.5 * drawn[0], 2 * math.pi * drawn[1]
    seconds = torch.arange(steps, dtype=torch.float64)[:, None] * dt_ms / 1000
    waves = amplitudes * torch.sin(2 * math.pi * frequencies * seconds + phases)
    course = waves.sum(1, keepdim=True)
    course = course - course[0]
    return (course / course.abs().max()).float()
