"""Bounds of how active hidden units are, as one more part of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from biograd.checking import Checked, NotNegative
from biograd.ranks import parallel


class Named(Protocol):
    """A site, by its name and the block that it enters."""

    @property
    def name(self) -> str:
        """As it stands in run files."""

    @property
    def block(self) -> str | None:
        """Name of the site whose block this one enters; None: its own."""


@dataclasses.dataclass(frozen=True)
class ActivityBounds(Checked):
    """What activity costs beyond its bounds: ``E = weight sum_l mean_j g(f_j)``.

    ``f_j`` is the mean activity of unit ``j`` over the steps and the batch, spikes a unit and step
    where units spike; ``g(f) = max(lower - f, 0)^2 + max(f - upper, 0)^2``.  Equal bounds are a
    target.  The derivative by a unit's activity, ``dE/df_j / T``, passes back as that of the loss
    does: through all layers below in back-propagation, within a block where a rule stops credit
    behind it (in e-prop it meets the eligibility trace), and in each copy's loss, to first order,
    where a rule learns from perturbed losses.

    Attributes:
        weight: 0: no bounds.
        lower, upper: of the activity; None: no upper bound.
        per: whose activity is held: every "neuron" has ``f_j`` of its own, a "layer" or the whole
            "network" (an energy budget) one mean over its units.
        sites: "all" hidden ones, or names.

    Source: G. Bellec et al., Nature Communications 11:3625 (2020), for equal bounds per neuron.
    """

    weight: NotNegative = 0.0
    lower: NotNegative = 0.0
    upper: NotNegative | None = None
    per: Literal["neuron", "layer", "network"] = "neuron"
    sites: Literal["all"] | tuple[str, ...] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight and not self.lower and self.upper is None:
            raise ValueError(f"weight = {self.weight:g} of no bound: give lower, upper or both")
        if self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower = {self.lower:g} lies above upper = {self.upper:g}")

    def watched(self, sites: Sequence[Named]) -> tuple[str, ...]:
        """Return the names of the sites whose blocks are looked at, the last being the readout."""
        hidden = [site.name for site in sites[:-1] if site.block is None]
        return tuple(n for n in hidden if self.sites == "all" or n in self.sites)

    def cost(self, activity: Mapping[str, Tensor]) -> Tensor:
        """Return ``E`` of mean activities by site, ``[*U]`` each."""
        found = [values.flatten() for values in activity.values()]
        if self.per == "network":
            found = [torch.cat(found).mean()[None]]
        elif self.per == "layer":
            found = [values.mean()[None] for values in found]
        return self.weight * torch.stack([self._beyond(f).mean() for f in found]).sum()

    def _beyond(self, activity: Tensor) -> Tensor:
        below = (self.lower - activity).relu().square()
        return below if self.upper is None else below + (activity - self.upper).relu().square()


class Priced(NamedTuple):
    """What the activity of the clean copy costs, and what more of it would.

    Attributes:
        cost: ``E``.
        slopes: by site ``dE/df_j``, ``[*U]``.
        offset: ``E - sum_j dE/df_j f_j``.
    """

    cost: float
    slopes: Mapping[str, Tensor]
    offset: float

    @classmethod
    def of(cls, bounds: ActivityBounds, activity: Mapping[str, Tensor]) -> Priced:
        """Return the price of activities ``[rows, T, *U]``; ranks share their means."""
        with torch.enable_grad():
            means = {
                name: parallel.average(values.detach().mean((0, 1))).requires_grad_()
                for name, values in activity.items()
            }
            cost = bounds.cost(means)
            slopes = torch.autograd.grad(cost, list(means.values()))
        named = dict(zip(means, slopes, strict=True))
        spent = sum(float((named[name] * means[name].detach()).sum()) for name in means)
        return cls(float(cost.detach()), named, float(cost.detach()) - spent)

    def steps(self, activity: Mapping[str, Tensor], count: int) -> Tensor:
        """Return what is added to the losses, ``[rows, count]``: of each step, or of all in one.

        The mean over the clean copy's rows of their sum over the steps is ``E``.
        """
        total: Tensor | None = None
        for name, values in activity.items():
            each = (values * self.slopes[name]).flatten(2).sum(2) / values.shape[1]
            if each.shape[1] != count:
                each = each.sum(1, keepdim=True).expand(-1, count) / count
            total = each if total is None else total + each
        assert total is not None
        return total + self.offset / count
