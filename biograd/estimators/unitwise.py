"""Unit-wise weak gradients: each threshold's derivative is regressed from noise on its membrane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Transport
from biograd.estimators.estimator import Estimator
from biograd.ranks import parallel
from biograd.recipes import Positive, Range, validate


class UnitwiseGradient(Estimator):
    """Back-propagate through thresholds whose slope is measured, in place of a surrogate.

    In every step ``n`` normal noises ``sigma u_i`` on the membrane potential ``v`` tell for each
    unit alone how its spike ``s = (v + sigma u > threshold)`` follows the potential,
    ``ds/dv = sum_i (s_i - mean s) u_i / ((n - 1) sigma)``: the regression slope with the noise's
    known variance.  Its expectation is ``phi((v - threshold) / sigma) / sigma`` with the normal
    density ``phi``, a Gaussian surrogate.  The noises stay within the unit: the spikes that the
    network sees are clean.  Units that do not spike keep their own derivative.

    Args:
        draws: ``n``, number of noises per unit and step.
        sigma: standard deviation of the noise on the membrane, in the unit of the threshold.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    coincides = "where nothing spikes"
    divides = "examples"
    passes = "1 forward with n thresholds per unit and step, 1 backward"
    bias = "that of a Gaussian surrogate of width sigma"
    closed_loop = "copies see other inputs there, by which slopes cannot be measured"
    reference = "Hazelden 2023, arXiv 2311.10869; Stein 1981"

    def __init__(self, draws: Annotated[int, Range(2)] = 16, sigma: Positive = 0.3) -> None:
        validate(UnitwiseGradient, locals())
        super().__init__()
        self.draws, self.sigma = draws, sigma

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose thresholds have measured slopes."""
        stream = round.generator  # not the round: it holds the graph, which holds this function

        def derivative(distance: Tensor) -> Tensor:
            return measured_slope(distance, self.sigma, self.draws, stream)

        return (Plan(transport=Transport(derivative=derivative)),)


@torch.no_grad()
def measured_slope(distance: Tensor, sigma: float, draws: int, stream: torch.Generator) -> Tensor:
    """Return an unbiased estimate of ``phi(distance / sigma) / sigma``, of the same shape.

    Args:
        distance: membrane potential minus threshold.
        sigma: standard deviation of the noise.
        draws: number of noises, two at least.
        stream: of random numbers.
    """
    sums = [torch.zeros_like(distance) for _ in range(3)]  # of u, of s, of their product
    for _ in range(draws):
        noise = _normal(distance, stream)
        fired = (distance + sigma * noise > 0).to(distance.dtype)
        for total, value in zip(sums, (noise, fired, noise * fired), strict=True):
            total.add_(value)
    noises, spikes, products = sums
    return (products - noises * spikes / draws) / ((draws - 1) * sigma)


def _normal(like: Tensor, stream: torch.Generator) -> Tensor:
    """Return standard normal numbers ``[B, ...]`` of the shape and type of a tensor."""

    def draw(count: int) -> Tensor:
        shape = (count, *like.shape[1:])
        return torch.randn(shape, generator=stream, device=stream.device, dtype=like.dtype)

    return parallel.rows(draw, len(like)).to(like.device)
