"""A datum as the phase of spikes in a rhythm."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from biograd.encoding import Encoding
from biograd.errors import RecipeError
from biograd.recipes import EncodingRecipe, Positive


@dataclasses.dataclass(frozen=True)
class Settings:
    period_ms: Positive = 10.0


class Phase(Encoding):
    """A spike in every period: of an input 1 at its beginning, of 0 at its end."""

    spikes = True
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        super().__init__(recipe, shape)
        self.period = round(self.settings.period_ms / self.dt_ms)
        if not 1 <= self.period <= self.steps:
            raise RecipeError(
                f"encoding.settings.period_ms = {self.settings.period_ms:g}: from one step, "
                f"{self.dt_ms:g} ms, to the trial, {self.duration_ms:g} ms"
            )

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        late = 1 - inputs.flatten(1).clamp(0, 1)
        phase = (late * (self.period - 1)).round().unsqueeze(1)
        now = torch.arange(self.steps, device=inputs.device) % self.period
        return (now.view(1, -1, 1) == phase).to(inputs.dtype)
