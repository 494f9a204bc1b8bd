"""What is read of a population over a trial: one value for each of its units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biograd.errors import RecipeError, nearest
from biograd.recipes import NetworkRecipe

KINDS = ("membrane", "rate", "filtered_rate", "first_spike", "potential")


class Readout(nn.Module):
    """The course of a population ``[rows, steps, units]`` as values ``[rows, units]``.

    =============  =================================================================================
    membrane       the mean over the trial of a leaky integrator with decay ``k = exp(-dt/tau)``,
                   ``sum_t c[t] s[t]`` with ``c[t]`` proportional to ``1 - k^(steps - t)``, scaled
                   to a mean weight of 1, so that it counts spikes as "rate" does
    rate           the number of spikes, ``c = 1``
    filtered_rate  an exponential filter at the end of the trial, ``c[t] = k^(steps - 1 - t)``
    first_spike    how early the first spike comes, 1 at once to 0 never:
                   ``1 - (1/steps) sum_t prod_{u <= t} (1 - s[u])``
    potential      the mean of a variable, ``c = 1 / steps``
    =============  =================================================================================

    Args:
        kind: one of these.
        steps: number of time steps of a trial.
        dt_ms: length of a step in milliseconds.
        time_constant_ms: of the leaky integrator or the filter.

    Raises:
        RecipeError: no such kind.
    """

    def __init__(
        self,
        kind: str = "membrane",
        steps: int = 1,
        dt_ms: float = 1.0,
        time_constant_ms: float = 20.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise RecipeError(f"Readout: kind = {kind!r}: {nearest(kind, KINDS)}")
        self.kind, self.steps = kind, steps
        self.dt_ms, self.time_constant_ms = dt_ms, time_constant_ms
        left = torch.arange(steps, 0, -1, dtype=torch.float64)
        decay = math.exp(-dt_ms / time_constant_ms)
        weights = torch.ones_like(left)
        if kind == "potential":
            weights = weights / steps
        elif kind == "filtered_rate":
            weights = decay ** (left - 1)
        elif kind == "membrane":
            weights = 1 - decay**left
            weights = weights / weights.mean()
        self.register_buffer("weights", weights, persistent=False)

    @classmethod
    def of(cls, network: NetworkRecipe, steps: int, dt_ms: float) -> Readout:
        """Return the readout of a recipe."""
        return cls(network.readout, steps, dt_ms, network.readout_time_constant_ms)

    def forward(self, course: Tensor) -> Tensor:
        """Return the values ``[rows, units]`` of spikes or a variable ``[rows, steps, units]``."""
        if self.kind == "first_spike":
            silent: Tensor = torch.cumprod(1 - course, 1)
            return 1 - silent.mean(1)
        weights = self.get_buffer("weights")
        return torch.einsum("t,rtu->ru", weights.to(course.dtype), course)

    def extra_repr(self) -> str:
        """Return the kind for ``print``."""
        return f"{self.kind!r}, steps={self.steps}"


class LeakyReadout(nn.Module):
    """Placeholder until the branch with readouts in time lands."""

    def __init__(self, dt_ms: float, tau_ms: float) -> None:
        super().__init__()
        self.keep = math.exp(-dt_ms / tau_ms) if tau_ms else 0.0

    def forward(self, current: Tensor) -> Tensor:
        """Return the filtered current."""
        y, found = torch.zeros_like(current[:, 0]), []
        for now in current.unbind(1):
            y = self.keep * y + (1 - self.keep) * now
            found.append(y)
        return torch.stack(found, 1)
