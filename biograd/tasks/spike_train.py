"""Trains of spikes in time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from biograd.checking import Positive
from biograd.errors import RecipeError
from biograd.tasks.leaky_sum import leaky_sum
from biograd.tasks.task import Metrics, Task, Totals, check_numbers, known, ratio, refuse


@dataclasses.dataclass(frozen=True)
class SpikeTrain(Task):
    """Trains of spikes: targets are counts ``[B, T, K]``; NaN unknown (Poisson).

    "van_rossum": ``D^2 = (sum K(a, a') + sum K(b, b')) / 2 - sum K(a, b)`` of all spikes a of the
    outputs and b of the targets, ``K = exp(-|t - t'| / tau)``; by the leaky sum u of their
    difference it is ``(1 - k^2)/2 sum_t u[t]^2``, ``k = exp(-dt/tau)``, the sum reaching beyond the
    trial (van Rossum 2001, Neural Computation 13, 751).

    "poisson": the outputs are logarithms of the expected count of a step, the loss is
    ``sum_t exp(o) - n o``, the negative logarithm of the likelihood but for ``log n!``.

    Args:
        loss: "van_rossum" or "poisson".
        time_constant_ms: tau of the van Rossum distance.
        dt_ms: length of a step.
    """

    timed: bool = True
    loss: Literal["van_rossum", "poisson"] = "van_rossum"
    time_constant_ms: Positive = 10.0
    dt_ms: Positive = 1.0

    headline: ClassVar[str] = "distance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timed:
            raise RecipeError("task: timed = false: trains of spikes have a time axis")
        if self.loss == "poisson":  # of a frozen object, and of this one alone
            object.__setattr__(self, "headline", "bits_per_spike")
            object.__setattr__(self, "better", "higher")

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is no count."""
        check_numbers(self, targets, where)
        refuse(targets < 0, where, "a count is below 0")
        if self.loss == "van_rossum":
            refuse(targets.isnan(), where, "a count is missing: van Rossum's distance needs all")

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the part of every step, ``[B, T]``; the last holds what decays beyond it."""
        targets, mask = known(outputs, targets)
        if self.loss == "poisson":
            return ((outputs.exp() - targets * outputs) * mask).sum(-1)
        decay = math.exp(-self.dt_ms / self.time_constant_ms)
        square = leaky_sum(outputs - targets, decay).square().sum(-1)
        weights = square.new_full(square.shape[1:], 0.5 * (1 - decay**2))
        weights[-1] = 0.5
        return square * weights

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the distance, or the parts of the bits a spike, for each output."""
        if self.loss == "van_rossum":
            found = self.losses(outputs, targets)
            return {"distance": (found, torch.ones_like(found))}
        targets, mask = known(outputs.double(), targets)
        counts, likelihood = targets * mask, (targets * outputs - outputs.double().exp()) * mask
        return {"bits_per_spike": (likelihood.sum(1), counts.sum(1), mask.sum(1))}

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the mean distance, or the gain in bits a spike over each output's mean rate."""
        if self.loss == "van_rossum":
            return super().figures(totals)
        likelihood, counts, steps = totals["bits_per_spike"]
        rates = sum(n * math.log(n / t) - n for n, t in zip(counts, steps, strict=True) if n)
        return {"bits_per_spike": ratio(sum(likelihood) - rates, sum(counts) * math.log(2))}

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return the number of trains."""
        return {"outputs": int(torch.as_tensor(targets).shape[-1])}
