"""Likelihood ratio: noise at the sites makes the loss's mean differentiable by the currents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from biograd.contracts import Round, Trace, Visits
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators.loss_regression import pairs
from biograd.estimators.weak_gradient import SHARED, WeakGradient
from biograd.recipes import Count, Positive, Range, validate
from biograd.substrate.effective import effective_parameters, respond
from biograd.substrate.network import LAYERS

BASELINES = {"none": "score", "leave_one_out": "leave_one_out", "clean": "baseline"}
SIGN = math.sqrt(math.pi / 2)
"""``1 / E|u|`` of a standard normal ``u``: ``E[SIGN sgn(u) u] = 1``."""


class LikelihoodRatio(WeakGradient):
    """Weigh each copy's noise by its loss: the score of the noise's density.

    With ``z_s = z + e_s``, ``e_s ~ N(0, s^2 I)`` at all chosen sites, the gradient of the noisy
    network's mean loss is ``E[L(z_s) e_s] / s^2``; the estimate is its mean over ``m`` copies,
    for each example by itself.  Nothing in the network is differentiated and no clean pass
    enters (that of copy 0 serves the exact gradient of the readout).  Per example with ``d``
    perturbed units and a linear loss the squared error is ``[(d + 1)|g|^2 + d L_0^2 / s^2] / m``
    without baseline and ``(d + 1)|g|^2 / m`` with the clean one.

    Args:
        copies: ``S``, the clean one included.
        sigma: size of the noise relative to the site's root-mean-square current.
        baseline: subtracted from the losses: "none", "leave_one_out" (mean of the other copies) or
            "clean".  In pairs every baseline cancels.
        antithetic: noise in opposite pairs; ``m`` is then even.
        shaping: "none", or "rank": centred ranks take the losses' place, and no baseline.
        bits: "all"; "noise": of each unit's noise only the sign is used, one bit for each copy,
            example and unit, times ``sqrt(pi/2)``, which keeps the mean on a linear loss; or
            "product": of the product of a unit's noise and its input, the weight's share of the
            score, only the sign is used, ``sgn(e_j x_i) = sgn(e_j) sgn(x_i)``, one bit for each
            unit and each input, times ``sqrt(pi/2)`` and the example's mean ``|x_i|``.
        sites: "all" hidden sites together, or "round_robin" one in each step.
        time_bin: number of time steps in which the noise stays constant, or "trial"; None: one
            step where inputs or targets vary in time, else the whole trial.

    Raises:
        RecipeError: an even number of copies for pairs.
        CapabilityError: bits = "product" where a current is not what linear or convolutional
            layers return.
    """

    passes = "S forward"
    bias = (
        "second order in sigma; bits = product: the sign of the inputs stands for the inputs; "
        + SHARED
    )
    reference = "Jiang et al. 2023, arXiv 2305.08960; one bit: Zhang et al. 2024, arXiv 2403.12320"
    batch_norm = False

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        if given["shaping"] == "rank":
            return {"baseline": "with shaping = 'rank'"}
        return {"baseline": "with antithetic = true"} if given["antithetic"] else {}

    def __init__(
        self,
        copies: Annotated[int, Range(3)] = 33,
        sigma: Positive = 0.2,
        baseline: Annotated[str, BASELINES] = "leave_one_out",
        antithetic: bool = False,
        shaping: Literal["none", "rank"] = "none",
        bits: Literal["all", "noise", "product"] = "all",
        sites: Literal["all", "round_robin"] = "all",
        time_bin: Count | Literal["trial"] | None = None,
    ) -> None:
        validate(LikelihoodRatio, locals())
        if antithetic and copies % 2 == 0:
            raise RecipeError(
                f"estimator: copies = {copies}: pairs and one clean copy make an odd number"
            )
        method = "antithetic" if antithetic else BASELINES[baseline]
        method = "rank" if shaping == "rank" else method
        super().__init__(copies, sigma, method, sites, 0.0, time_bin)
        self.baseline, self.antithetic, self.bits = baseline, antithetic, bits
        self.unbiased = (shaping, bits, sites) == ("none", "all", "all")
        if antithetic:
            self.directions = pairs

    def seen(self, directions: Tensor) -> Tensor:
        """Return the directions ``[m, B, D]``, or ``sqrt(pi/2)`` times their signs."""
        return directions if self.bits == "all" else SIGN * directions.sign()

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the share of the estimated gradient of every visit of the chosen sites."""
        if self.bits != "product":
            yield from super().credit(traces, round)
            return
        if round.closed_loop:
            raise CapabilityError("bits = 'product': not in an environment: take 'noise' or 'all'")
        (trace,) = traces
        for name, gradient in self.estimates(trace, round).items():
            site = trace.sites[name]
            for layer, visits in zip(round.site_layers[name], site.visits, strict=True):
                if round.step == 0:
                    check_current(name, round.layers[layer], visits)
                shares = list(visits.deliver(gradient, site.shape.steps, site.time_bin))
                yield from signed(round.layers[layer], visits, shares)


def signed(
    layer: torch.nn.Module, visits: Visits, shares: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs that train a layer's weight as if it had received the signs of its inputs.

    The signs are scaled by each example's mean ``|x|``.  The layer's bias, and what lies below it,
    get what they always get.

    Args:
        shares: each output of the layer with its cotangent.
    """
    for inputs, (output, cotangent) in zip(visits.inputs, shares, strict=True):
        scale = inputs.abs().flatten(1).mean(1).view(-1, *[1] * (inputs.dim() - 1))
        yield output, cotangent
        with torch.enable_grad():  # the response is linear in the weight and in what it receives
            weight, _ = effective_parameters(layer)
            yield respond(layer, weight, scale * inputs.sign() - inputs), cotangent


@torch.no_grad()
def check_current(name: str, layer: torch.nn.Module, visits: Visits) -> None:
    """Refuse a layer whose output is not the site's current, or is not linear in its weight.

    Raises:
        CapabilityError: with the site.
    """
    if isinstance(layer, LAYERS):
        weight, _ = effective_parameters(layer)
        inputs, output = visits.inputs[0], visits.outputs[0]
        expected = output - respond(layer, weight, inputs)
        spread = expected - expected[:1]  # what is left is the bias, the same for all rows
        if spread.abs().max() <= 1e-3 * output.abs().max() + 1e-6:
            return
    raise CapabilityError(
        f"site {name}: its current is not what {type(layer).__name__} returns, so that there is no "
        "product of noise and input: take bits = 'noise'"
    )
