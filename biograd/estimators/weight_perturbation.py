"""Weight perturbation: correlate the noise of all parameters with the change of the mean loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from biograd.checking import NotNegativeCount
from biograd.contracts import Credit, ParameterNoise, Plan, Round, Trace
from biograd.contracts.parameter_noise import Kind
from biograd.errors import RecipeError
from biograd.estimators.estimator import Estimator
from biograd.estimators.loss_regression import centred_ranks
from biograd.recipes import Positive, Range, validate


class WeightPerturbation(Estimator):
    """Correlate antithetic noise of all parameters with the mean loss of the batch.

    ``g = (1/n) sum (L(w + sigma v_s) - L(w - sigma v_s)) / (2 sigma) v_s`` over ``n`` pairs.  Each
    pair keeps a seed; of the noise no more than 256 MB are kept, the rest is drawn again.  Needs
    nothing of the network but its loss, and learns the readout in the same way.  With local losses
    each parameter takes the losses of its own block, and what they reach without passing a hidden
    site, the readout and local heads, has the exact gradient.

    Args:
        copies: ``S = 2 n + 1``, the clean one included.
        sigma: standard deviation of the noise, in units of the parameters.
        shaping: "none", or "rank": centred ranks in [-1/2, 1/2] of the copies' mean losses take
            the losses' place, as in evolution strategies; the size of the gradient is then that
            of ``1 / sigma`` and no longer that of the loss.
        directions: "normal" or "rademacher" (signs, which are drawn in a sixth of the time).
        rank: of the noise of a matrix, ``v = A B / sqrt(r)`` (a filter is a row); 0: independent
            elements.  Drawing it costs next to nothing; it adds ``2 (out + in + 1) / r`` to the
            ``P + 2`` of the mean square ``(P + 2) |g|^2`` of normal noise, in that matrix.

    Raises:
        RecipeError: the number of copies is even.
    """

    needs = frozenset(("loss", "perturb_parameter"))
    divides = "copies"
    graphless = True
    reach = "parameters"
    exact_readout = False
    passes = "S forward"
    bias = "second order in sigma; with ranks only the direction is that of the gradient"
    reference = "Spall 1992; Salimans et al. 2017, arXiv 1703.03864; rank: arXiv 2511.16652"

    def __init__(
        self,
        copies: Annotated[int, Range(3)] = 33,
        sigma: Positive = 0.01,
        shaping: Literal["none", "rank"] = "none",
        directions: Kind = "normal",
        rank: NotNegativeCount = 0,
    ) -> None:
        validate(WeightPerturbation, locals())
        super().__init__()
        if copies % 2 == 0:
            raise RecipeError(
                f"estimator: copies = {copies}: pairs and one clean copy make an odd number"
            )
        self.copies, self.sigma, self.shaping = copies, sigma, shaping
        self.directions, self.rank, self.unbiased = directions, rank, shaping == "none"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan of antithetic pairs of parameter noise, without a graph."""
        count = (self.copies - 1) // 2
        device = round.generator.device
        draw = torch.randint(2**62, (count,), generator=round.generator, device=device)
        seeds = tuple(seed for seed in draw.tolist() for _ in range(2))
        sizes = (self.sigma, -self.sigma) * count
        noise = ParameterNoise(seeds, sizes, self.directions, self.rank)
        if any(round.owners.values()):
            return (dataclasses.replace(ended(round), parameter_noise=noise),)
        return (Plan(parameter_noise=noise, graph=False),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter with its estimated gradient."""
        noise = traces[0].plan.parameter_noise
        assert noise is not None
        parameters = round.parameters
        owners = round.parameter_owners or ("",) * len(parameters)
        slopes = {owner: self._slopes(traces[0], round, owner) for owner in set(owners)}
        known = Known.of(traces[0], round)
        pairs = range((self.copies - 1) // 2)
        weights = {2 * pair: [slopes[owner][pair] for owner in owners] for pair in pairs}
        totals = noise.total(parameters, weights)
        noise.forget()
        yield from known.complete(parameters, totals)

    def _slopes(self, trace: Trace, round: Round, owner: str) -> list[float]:
        """Return for each pair what weighs its noise in the parameters of one block."""
        if trace.means:
            losses = trace.means[owner]
        else:
            losses = (round.losses(trace, owner) if owner else trace.losses)[1:].mean(1)
        if self.shaping == "rank":
            losses = centred_ranks(losses)
        difference = (losses[0::2] - losses[1::2]) / (2 * self.sigma)
        return (difference / len(difference)).tolist()


@dataclasses.dataclass(frozen=True)
class Known:
    """The gradients that the plan's cuts let through, for each parameter or None.

    Attributes:
        whole: of parameters that act on the losses in no other way.
        part: of those that also act in a hidden site's block, by a skip past a site or as a weight
            of several layers: what is missing must be estimated.
    """

    whole: list[Tensor | None]
    part: list[Tensor | None]

    @classmethod
    def of(cls, trace: Trace, round: Round) -> Known:
        """Return what autograd finds in a trace with the cuts of ``ended``."""
        found = gradients(trace.loss, round.parameters)
        sites = [trace.sites[name] for name in round.hidden if name in trace.sites]
        values = [v for site in sites for visits in site.visits for v in visits.outputs]
        values += [site.activity for site in sites if site.activity is not None]
        total = sum((value.sum() for value in values), torch.zeros_like(trace.loss))
        reached = [p for p, g in zip(round.parameters, found, strict=True) if g is not None]
        through = iter(gradients(total, reached))
        shared = [gradient is not None and next(through) is not None for gradient in found]
        pairs = list(zip(found, shared, strict=True))
        return cls([None if s else g for g, s in pairs], [g if s else None for g, s in pairs])

    def complete(self, parameters: Sequence[Tensor], estimates: Sequence[Tensor]) -> Credit:
        """Yield each parameter with what its estimate adds to the gradient that is known."""
        for parameter, estimate, whole, part in zip(
            parameters, estimates, self.whole, self.part, strict=True
        ):
            if whole is None:
                yield parameter, estimate if part is None else estimate - part


def ended(round: Round) -> Plan:
    """Return a plan in which the losses reach nothing but the readout and local heads."""
    readout = frozenset(round.site_layers[round.readout])
    return Plan(cut=frozenset(round.hidden), detach=readout)


def gradients(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the derivatives of a value by tensors; None where no graph leads from one to it."""
    if not value.requires_grad or not tensors:
        return [None] * len(tensors)
    return list(torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True))
