"""A datum as the rates of independent spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from biograd.encoding.encoding import Encoding
from biograd.errors import RecipeError
from biograd.ranks import parallel
from biograd.recipes import EncodingRecipe


class Poisson(Encoding):
    """Independent spikes, each step with probability ``p = x max_rate dt`` within 0 and 1.

    Raises:
        RecipeError: ``max_rate dt > 1``; one step holds one spike at most.
    """

    spikes = True
    reads = frozenset(("max_rate_hz",))

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Check that one step can hold the spikes of the highest rate."""
        super().__init__(recipe, shape)
        self.most = recipe.max_rate_hz * recipe.dt_ms / 1000
        if self.most > 1 + 1e-9:
            raise RecipeError(
                f"encoding.max_rate_hz = {recipe.max_rate_hz:g} needs {self.most:g} spikes in a "
                f"step of encoding.dt_ms = {recipe.dt_ms:g}; a step holds one: lower either"
            )

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the spikes on the generator's device, the same in float32 and in float64."""
        shape, where = (self.steps, self.units), generator.device
        draws = parallel.rows(
            lambda count: torch.rand(
                count, *shape, generator=generator, device=where, dtype=torch.float32
            ),
            len(inputs),
        )
        chance = self.most * inputs.reshape(len(inputs), 1, self.units).float()
        draws = draws.to(inputs.device)
        return torch.lt(draws, chance, out=draws).to(inputs.dtype)
