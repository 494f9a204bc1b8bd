"""Weight perturbation: correlate the noise of all parameters with the change of the mean loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from biograd.contracts import ParameterNoise, Plan, Round, Trace
from biograd.errors import RecipeError
from biograd.estimators.estimator import Estimator
from biograd.recipes import Positive, Range, validate


class WeightPerturbation(Estimator):
    """Correlate antithetic noise of all parameters with the mean loss of the batch.

    ``g = (1/n) sum (L(w + sigma v_s) - L(w - sigma v_s)) / (2 sigma) v_s`` over ``n`` pairs.  The
    noise is never stored: each pair keeps a seed and draws it again.  Needs nothing of the
    network but its loss, and learns the readout in the same way.

    Args:
        copies: ``S = 2 n + 1``, the clean one included.
        sigma: standard deviation of the noise, in units of the parameters.

    Raises:
        RecipeError: the number of copies is even.
    """

    needs = frozenset(("loss", "perturb_parameter"))
    passes = "S forward"
    bias = "third order in sigma"
    reference = "Spall 1992; Salimans et al. 2017, arXiv 1703.03864"

    def __init__(self, copies: Annotated[int, Range(3)] = 33, sigma: Positive = 0.01) -> None:
        validate(WeightPerturbation, locals())
        super().__init__()
        if copies % 2 == 0:
            raise RecipeError(
                f"estimator: copies = {copies}: pairs and one clean copy make an odd number"
            )
        self.copies, self.sigma = copies, sigma

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan of antithetic pairs of parameter noise, without a graph."""
        count = (self.copies - 1) // 2
        device = round.generator.device
        draw = torch.randint(2**62, (count,), generator=round.generator, device=device)
        seeds = tuple(seed for seed in draw.tolist() for _ in range(2))
        noise = ParameterNoise(seeds, (self.sigma, -self.sigma) * count)
        return (Plan(parameter_noise=noise, graph=False),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter with its estimated gradient."""
        noise = traces[0].plan.parameter_noise
        assert noise is not None
        losses = traces[0].losses.mean(1)
        slopes = (losses[1::2] - losses[2::2]) / (2 * self.sigma)
        parameters = round.parameters
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for pair, slope in enumerate(slopes.tolist()):
            for total, draw in zip(totals, noise.draw(2 * pair, parameters), strict=True):
                total.add_(draw, alpha=slope / len(slopes))
        yield from zip(parameters, totals, strict=True)
