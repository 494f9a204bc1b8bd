"""What is read of a population: one value of each unit for a trial, or outputs in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biograd.contracts.trial_part import TrialPart
from biograd.errors import RecipeError, nearest
from biograd.recipes import Count, NetworkRecipe, Positive, validate
from biograd.tasks.leaky_sum import leaky_sum

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

    Attributes:
        part: the part of a trial that is read; None: the whole trial.

    Raises:
        RecipeError: no such kind.
    """

    part: TrialPart | None = None

    def __init__(
        self,
        kind: str = "membrane",
        steps: Count = 1,
        dt_ms: Positive = 1.0,
        time_constant_ms: Positive = 20.0,
    ) -> None:
        validate(Readout, locals())
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
        if network.readout not in KINDS:
            known = (*KINDS, "counts")
            raise RecipeError(
                f"network.readout = {network.readout!r}: {nearest(network.readout, known)}"
            )
        return cls(network.readout, steps, dt_ms, network.readout_time_constant_ms)

    def forward(self, course: Tensor) -> Tensor:
        """Return the values ``[rows, units]`` of spikes or a variable ``[rows, steps, units]``."""
        if self.kind == "first_spike":
            silent: Tensor = torch.cumprod(1 - course, 1)
            return 1 - silent.mean(1)
        weights = self.get_buffer("weights").to(course.dtype)
        if self.part is None:
            return weights @ course
        found = weights[self.part.first :][: self.part.steps] @ course
        found = found + self.part.begun[0] if self.part.begun else found
        self.part.ended = (found,)
        return found

    def weigh(self, part: TrialPart) -> tuple[Tensor, float]:
        """Return the weights of a part's steps, ``[steps]``, and what is kept of those before."""
        return self.get_buffer("weights")[part.first :][: part.steps], 1.0

    def extra_repr(self) -> str:
        """Return the kind for ``print``."""
        return f"{self.kind!r}, steps={self.steps}"


class Counts(nn.Module):
    """The units are the outputs themselves: spikes ``[rows, units]`` or ``[rows, steps, units]``.

    Where credit is cut behind the units a graph begins here, so that the error has a derivative.
    """

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the spikes."""
        cut = torch.is_grad_enabled() and not spikes.requires_grad
        return spikes.detach().requires_grad_() if cut else spikes


class LeakyReadout(nn.Module):
    """Outputs in every step: what a layer returns, ``i[t]``, through a leaky integrator.

    ``y[t] = k y[t-1] + (1 - k) i[t]`` with ``k = exp(-dt/tau)``, from ``y = 0``; both
    ``[rows, steps, outputs]``.  It stands behind the readout's layer, so that the readout's
    current, where errors are broadcast from, has the steps.

    Args:
        dt_ms: length of a step in milliseconds.
        time_constant_ms: ``tau``.

    Attributes:
        part: the part of a trial that is run; None: the whole trial.
    """

    part: TrialPart | None = None

    def __init__(self, dt_ms: Positive = 1.0, time_constant_ms: Positive = 20.0) -> None:
        validate(LeakyReadout, locals())
        super().__init__()
        self.dt_ms, self.time_constant_ms = dt_ms, time_constant_ms
        self.decay = math.exp(-dt_ms / time_constant_ms)

    @classmethod
    def of(cls, network: NetworkRecipe, dt_ms: float) -> LeakyReadout:
        """Return the readout of a recipe for a task in time.

        Raises:
            RecipeError: the recipe reads one value of a trial.
        """
        if network.readout not in ("membrane", "filtered_rate"):
            raise RecipeError(
                f"network.readout = {network.readout!r}: one value of a trial, but the task needs "
                "outputs in every step: take 'membrane', a leaky integrator"
            )
        return cls(dt_ms, network.readout_time_constant_ms)

    def forward(self, current: Tensor) -> Tensor:
        """Return the outputs of every step."""
        found = leaky_sum((1 - self.decay) * current, self.decay)
        if self.part is None:
            return found
        if self.part.begun:
            left = torch.arange(1, current.shape[1] + 1, dtype=torch.float64)
            found = found + (self.decay**left).to(current)[:, None] * self.part.begun[0][:, None]
        self.part.ended = (found[:, -1],)
        return found

    def weigh(self, part: TrialPart) -> tuple[Tensor, float]:
        """Return the weights of a part's steps at its end, and what is kept of those before."""
        left = torch.arange(part.steps - 1, -1, -1, dtype=torch.float64)
        return (1 - self.decay) * self.decay**left, self.decay**part.steps

    def extra_repr(self) -> str:
        """Return the time constant for ``print``."""
        return f"time_constant_ms={self.time_constant_ms}"
