"""Forward gradient on weights: the loss's slope along a direction in the space of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from biograd.checking import NotNegativeCount
from biograd.contracts import ParameterNoise, Plan, Round, Trace
from biograd.contracts.parameter_noise import Kind, dense
from biograd.errors import CapabilityError
from biograd.estimators.estimator import Estimator
from biograd.estimators.weight_perturbation import Known, ended
from biograd.recipes import Count, validate


class ForwardGradientWeight(Estimator):
    """Weigh a random direction of all parameters by the slope of the mean loss along it.

    ``g_ij = (1/m) sum_s (nabla_w L . v_s) v_sij``; the inner product is one forward-mode
    derivative, no credit passes back.  The directions are shared by the examples of a batch; each
    copy keeps a seed; of the directions no more than 256 MB are kept, the rest is drawn again.
    Per element of ``P`` parameters, with ``N`` examples, mean variance ``V`` of the gradient and
    mean square ``S`` of its mean, the variance for normal directions is
    ``(P + 2)/N V + (P + 1) S``; for signs ``P/N V + (P - 1) S``.

    With local losses each parameter takes the slope of the loss of its own block.  What the
    losses reach without passing a hidden site, the readout and local heads, has the exact
    gradient; its share of the slope is then known and subtracted, so that ``P`` counts the others.

    Args:
        copies: ``m``, directions in each step.
        directions: "normal" or "rademacher" (signs).
        rank: of the direction of a matrix, ``v = A B / sqrt(r)`` (a filter is a row); 0:
            independent elements.  The mean stays the gradient; ``2 (out + in + 1) / r`` comes to
            the ``P + 2`` of normal directions, in that matrix.
        readout: "exact", or "forward" to estimate the readout's gradient like all others.

    Raises:
        CapabilityError: readout = "forward" with local losses, whose heads have no tangents.
    """

    passes = "1 forward, m forward with tangents"
    bias = "none"
    reference = "Baydin et al. 2022, arXiv 2202.08587; Ren et al. 2022, arXiv 2210.03310"
    needs = frozenset(("loss", "jvp_parameter", "cut"))
    divides = "examples"
    batch_norm = False
    reach = "parameters"

    def __init__(
        self,
        copies: Count = 1,
        directions: Kind = "normal",
        readout: Literal["exact", "forward"] = "exact",
        rank: NotNegativeCount = 0,
    ) -> None:
        validate(ForwardGradientWeight, locals())
        super().__init__()
        self.copies, self.directions, self.readout = copies, directions, readout
        self.rank, self.unbiased = rank, True
        self.exact_readout = readout == "exact"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan of directions, cut behind the hidden sites."""
        draw = torch.randint(
            2**62, (self.copies,), generator=round.generator, device=round.generator.device
        )
        seeds, sizes = tuple(draw.tolist()), (1.0,) * self.copies
        tangents = ParameterNoise(seeds, sizes, self.directions, self.rank)
        if self.readout == "exact":
            return (dataclasses.replace(ended(round), parameter_tangents=tangents),)
        if any(round.owners.values()):
            raise CapabilityError(
                "forward_gradient_weight: local heads have no tangents: with local losses take "
                "readout = 'exact'"
            )
        return (Plan(parameter_tangents=tangents, graph=False),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter that the losses do not reach themselves with its estimate."""
        (trace,) = traces
        directions, parameters = trace.plan.parameter_tangents, round.parameters
        assert directions is not None
        owners = round.parameter_owners or ("",) * len(parameters)
        known = Known.of(trace, round)
        weights: dict[int, list[float]] = {}
        for copy in range(self.copies):
            slopes = {owner: mean_slopes(trace, owner)[copy] for owner in set(owners)}
            draws = directions.draw(copy, parameters)
            for parameter, draw, gradient, owner in zip(
                parameters, draws, known.whole, owners, strict=True
            ):
                if gradient is not None:
                    slopes[owner] = slopes[owner] - (gradient * dense(draw, parameter)).sum()
            weights[copy] = [float(slopes[owner]) / self.copies for owner in owners]
        totals = directions.total(parameters, weights)
        directions.forget()
        yield from known.complete(parameters, totals)


def mean_slopes(trace: Trace, owner: str) -> Tensor:
    """Return the slopes ``[m]`` of the mean of a local loss, summed over its cells.

    Args:
        owner: name of the loss's site; "": the loss of the outputs.
    """
    slopes = trace.local_slopes[owner] if owner else trace.slopes
    assert slopes is not None
    return slopes.reshape(*slopes.shape[:2], -1).sum(2).mean(1)
