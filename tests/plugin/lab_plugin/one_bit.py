"""A learning rule that learns of every perturbation whether it helped, and not how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.estimators import Estimator
from biograd.recipes import Count, Positive, validate


class OneBit(Estimator):
    """Node perturbation of one bit: ``g = (1/m) sum over s of sign(L_s - L_0) e_s / sigma``.

    Args:
        copies: ``m``, perturbed passes of each example.
        sigma: size of the noise ``e``.
    """

    needs = frozenset(("loss", "perturb_site", "cut"))
    passes = "1 + m forward"
    bias = "the size of every example's gradient is lost"
    reference = "node perturbation: Williams 1992; of the loss's change only the sign"

    def __init__(self, copies: Count = 16, sigma: Positive = 0.1) -> None:
        validate(OneBit, locals())
        super().__init__()
        self.copies, self.sigma = copies, sigma

    def plans(self, round: Round) -> Sequence[Plan]:
        noise = {}
        for name in round.hidden:
            shape = (self.copies, round.batch, 1, *round.shapes[name].units)
            draw = torch.randn(shape, generator=round.generator, dtype=round.dtype)
            noise[name] = self.sigma * draw.to(round.device)
        return (Plan(noise=noise, cut=frozenset(round.hidden)),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        (trace,) = traces
        rose = (trace.losses[1:] - trace.losses[:1]).sign().to(round.dtype)
        for name in round.hidden:
            noise = trace.plan.noise[name]
            gradient = torch.einsum("mb,mb...->b...", rose, noise)
            scale = self.copies * self.sigma * round.batch
            yield from trace.sites[name].deliver(gradient / scale)
