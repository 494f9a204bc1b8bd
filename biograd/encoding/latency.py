"""A datum as the times of single spikes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biograd.encoding.encoding import Encoding


class Latency(Encoding):
    """One spike at most, the sooner the stronger the input.

    A constant input x charges a leaky membrane, which reaches the threshold θ after
    ``t = tau ln(x / (x - θ))``; the spike falls in the step that holds ``t``.  An input at or
    below the threshold never gets there, and one that does so after the trial is not seen.
    """

    spikes = True
    reads = frozenset(("time_constant_ms", "threshold"))

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Place the spikes; ``generator`` is not drawn from."""
        x = inputs.reshape(len(inputs), self.units)
        step = (self.times(x) / self.dt_ms).floor().clamp(max=self.steps)
        # The step behind the trial collects what is never seen.
        spikes = x.new_zeros(len(x), self.steps + 1, self.units)
        spikes.scatter_(1, step.long().unsqueeze(1), 1)
        return spikes[:, : self.steps]

    def times(self, inputs: Tensor) -> Tensor:
        """Return the time of each spike in milliseconds, infinite where there is none."""
        above = inputs > self.recipe.threshold
        charged = torch.where(above, inputs, 2 * self.recipe.threshold)
        times = -self.recipe.time_constant_ms * torch.log1p(-self.recipe.threshold / charged)
        return torch.where(above, times, math.inf)
