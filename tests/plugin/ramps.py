"""A data source and an encoding of another package: noisy ramps, and their steps as spikes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from biograd.data import Arrays, Parts, Request
from biograd.encoding import Encoding
from biograd.randomness import generator


@dataclasses.dataclass(frozen=True)
class Settings:
    """Rows of each split."""

    rows: int = 200


def read(request: Request) -> Parts:
    """Return ramps of 8 values that rise or fall, each with noise."""
    settings = request.settings(Settings)
    sources = {}
    for split in ("train", "test"):
        stream = generator(0, "ramps", split)
        labels = torch.randint(2, (settings.rows,), generator=stream)
        ramp = torch.linspace(0, 1, 8).expand(settings.rows, 8)
        inputs = torch.where(labels[:, None] == 1, ramp, 1 - ramp)
        sources[split] = Arrays(inputs + 0.1 * torch.rand(inputs.shape, generator=stream), labels)
    return Parts(sources)


@dataclasses.dataclass(frozen=True)
class Every:
    """How often a unit fires."""

    steps: int = 4


class Clock(Encoding):
    """A spike every few steps wherever the input is above the threshold."""

    spikes = True
    Settings = Every

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Place the spikes."""
        above = (inputs.flatten(1) > self.recipe.threshold).to(inputs.dtype)
        on = (torch.arange(self.steps) % self.settings.steps == 0).to(inputs.dtype)
        return above[:, None] * on[:, None].to(inputs.device)
