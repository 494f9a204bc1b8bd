"""An image row by row: its height is time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biograd.encoding.encoding import Encoding
from biograd.errors import RecipeError
from biograd.recipes import EncodingRecipe


class RowEncoding(Encoding):
    """An encoding in which an image's height, or the first axis of ``(rows, features)``, is time.

    Step ``s`` belongs to row ``floor(s rows / steps)``.

    Raises:
        RecipeError: the inputs have no rows, or the trial has fewer steps than rows.
    """

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Check that the inputs have rows and that the trial has a step for each."""
        super().__init__(recipe, shape)
        if len(self.shape) not in (2, 3):
            raise RecipeError(
                f"encoding.kind = {recipe.kind!r} needs images of shape (channels, height, width), "
                f"not {self.shape}: use current, poisson or latency"
            )
        self.rows = self.shape[-2]
        self.features = self.units = math.prod(self.shape) // self.rows
        if self.steps < self.rows:
            raise RecipeError(
                f"encoding.duration_ms = {recipe.duration_ms:g} gives {self.steps} steps for "
                f"{self.rows} rows: at least {self.rows * recipe.dt_ms:g} are needed"
            )

    @property
    def varying(self) -> bool:
        """True: every step tells of its row."""
        return True

    def by_row(self, inputs: Tensor) -> Tensor:
        """Return the inputs as ``[B, rows, features]``; channels lie side by side."""
        images = inputs if inputs.dim() == 4 else inputs.unsqueeze(1)
        return images.transpose(1, 2).flatten(2)


class RowCurrent(RowEncoding):
    """An image row by row as a current, ``I = gain x``; each row lasts ``duration / rows``."""

    reads = frozenset(("gain",))

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Find the row of every step."""
        super().__init__(recipe, shape)
        self.row_of_step = torch.arange(self.steps) * self.rows // self.steps

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Hold each row for its steps; ``generator`` is not drawn from."""
        return self.recipe.gain * self.by_row(inputs)[:, self.row_of_step.to(inputs.device)]
