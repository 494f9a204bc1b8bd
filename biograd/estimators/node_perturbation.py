"""Node perturbation: correlate each unit's perturbation with the change of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.errors import CapabilityError
from biograd.estimators.weak_gradient import SHARED, WeakGradient
from biograd.recipes import Count, Positive, Range, validate


class NodePerturbation(WeakGradient):
    """Correlate the change of the loss with the change of each unit's current.

    "injected": ``g = (1/m) sum (L_s - L_0) e_s / sigma^2`` with the injected noise ``e``.
    "measured": ``g = (1/m) sum (L_s - L_0) N Da_s / |Da_s|^2`` with the measured change ``Da`` of
    the ``N`` currents of a site, so that the noise need not be known and its effect on deeper
    layers is credited there (activity-based node perturbation).  Each site has its own norm, where
    Dalm et al. 2023 take one over all units, which weighs the sites by the square of their scale.

    Args:
        copies: ``S``, the clean one included.
        sigma: size of the noise relative to the site's root-mean-square current.
        activity: "injected" or "measured".
        sites: "all" hidden sites together, or "round_robin" one in each step.
        time_bin: number of time steps in which the noise stays constant, or "trial"; None: one
            step where inputs or targets vary in time, else the whole trial.
    """

    bias = (
        "second order in sigma; measured: also the noise of deeper layers, and a norm for each "
        "site where Dalm et al. take one over all; " + SHARED
    )
    reference = "Williams 1992; Dalm et al. 2023, arXiv 2310.00965"

    def __init__(
        self,
        copies: Annotated[int, Range(2)] = 17,
        sigma: Positive = 0.2,
        activity: Literal["injected", "measured"] = "injected",
        sites: Literal["all", "round_robin"] = "all",
        time_bin: Count | Literal["trial"] | None = None,
    ) -> None:
        validate(NodePerturbation, locals())
        super().__init__(copies, sigma, "baseline", sites, 0.0, time_bin)
        self.activity, self.unbiased = activity, activity == "injected" and sites == "all"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: independent noise; the noisy currents are recorded if measured."""
        (plan,) = super().plans(round)
        if self.activity == "injected":
            return (plan,)
        if round.closed_loop:
            raise CapabilityError(
                "activity = 'measured': in an environment a copy's currents differ from the clean "
                "one's by what it saw, not by its noise: take 'injected'"
            )
        return (Plan(plan.noise, None, plan.time_bin, plan.cut, observe=True),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the share of the estimated gradient of every visit of the chosen sites."""
        if self.activity == "injected":
            yield from super().credit(traces, round)
            return
        (trace,) = traces
        for name in self.chosen(round):
            losses = round.losses(trace, name)
            tails = (
                None
                if round.owners.get(name)
                else trace.tails(round.shapes[name].steps, trace.plan.time_bin)
            )
            difference = losses[1:] - losses[:1]
            observed = trace.sites[name].observed
            assert observed is not None
            change = observed - trace.sites[name].current()
            flat = change.flatten(2)
            power = flat.square().sum(-1).clamp_min(torch.finfo(flat.dtype).tiny)
            weight = difference.to(flat.dtype) * flat.shape[-1] / power
            gradient = torch.einsum("mb,mb...->b...", weight, change)
            if tails is not None:  # each bin by the losses that its noise can act on
                weights = (tails[1:] - tails[:1]).to(flat.dtype) * flat.shape[-1] / power[..., None]
                gradient = torch.einsum("mbk,mbk...->bk...", weights, change)
            yield from trace.sites[name].deliver(gradient / (len(weight) * round.batch))
