"""An image row by row, as spikes where it changes."""

from __future__ import annotations

import torch
from torch import Tensor

from biograd.encoding.rows import RowEncoding
from biograd.recipes import EncodingRecipe


class Delta(RowEncoding):
    """Spikes where a row differs from the one before by more than the threshold.

    The first half of the units are ON (brighter), the second half OFF (darker); a spike falls in
    the first step of its row.  The first row has none before it, and gives none.
    """

    spikes = True
    reads = frozenset(("threshold",))

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Find the first step of every row."""
        super().__init__(recipe, shape)
        self.units = 2 * self.features
        self.starts = torch.tensor([-(-row * self.steps // self.rows) for row in range(self.rows)])

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Place the spikes; ``generator`` is not drawn from."""
        change = self.by_row(inputs).diff(dim=1)
        threshold = self.recipe.threshold
        spikes = inputs.new_zeros(len(inputs), self.steps, self.units)
        events = torch.cat([change > threshold, change < -threshold], -1)
        spikes[:, self.starts[1:].to(inputs.device)] = events.to(inputs.dtype)
        return spikes
