"""A datum as a constant current."""

from __future__ import annotations

import torch
from torch import Tensor

from biograd.encoding.encoding import Encoding


class Current(Encoding):
    """A constant current in every step, ``I = gain x``; ``[B, 1, units]``."""

    reads = frozenset(("gain",))

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Scale the inputs; ``generator`` is not drawn from."""
        return self.recipe.gain * inputs.reshape(len(inputs), 1, self.units)
