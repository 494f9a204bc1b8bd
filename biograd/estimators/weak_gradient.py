"""Weak gradients: the gradient at a site is regressed from the losses of noisy copies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from biograd.contracts import Capability, Plan, Round, SiteShape, Trace, bin_lengths, bins
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.estimators.estimator import Estimator
from biograd.estimators.loss_regression import BY_COPY, METHODS, binned, copy_weights
from biograd.ranks import parallel
from biograd.recipes import Count, NotNegative, Positive, Range, validate
from biograd.substrate.effective import effective_parameters, respond
from biograd.substrate.network import LAYERS

SHARED = "steps of a time bin share its credit"


class WeakGradient(Estimator):
    """Regress each example's gradient at the hidden sites from the losses of noisy copies.

    The batch is enlarged to ``S`` copies; copy 0 is clean, the others add ``sigma r u`` to the
    input current of a site, with ``u`` standard normal and ``r`` the root mean square of that
    current.  For every example the losses are regressed on ``u``; by default
    ``g = E'(EE' + lambda I)^-1 dL / (sigma r)`` with intercept.  Behind a site no credit flows, so
    that nothing above it need be differentiable; the readout's gradient is exact.  In training,
    batch normalisation counts as constant: its statistics are those of the clean copy, and the
    gradient through them is missing.

    Args:
        copies: ``S``, the clean one included.
        sigma: size of the noise relative to the site's root-mean-square current.
        method: how the gradient follows from the losses (``loss_regression.METHODS``).
        sites: "all" hidden sites together, "round_robin" one in each step, or their names; with
            names, the other layers get their credit by back-propagation.
        ridge: relative strength of the ridge penalty, ``lambda = ridge D``.
        time_bin: number of time steps in which the noise stays constant, or "trial"; None: one
            step where inputs or targets vary in time, else the whole trial.  In a task in time a
            bin's credit comes from the losses of its own and later steps.

    Raises:
        CapabilityError: no site of that name.
        RecipeError: the method cannot work with this number of copies.
    """

    divides = "examples"
    passes = "S forward"
    bias = (
        "second order in sigma (finite_difference: first); ridge shrinks; least_squares, anchored, "
        "orthogonal and differences shrink to m/d with m < d noisy copies; " + SHARED
    )
    reference = "Hazelden 2023, arXiv 2311.10869"
    needs: frozenset[Capability] = frozenset(("loss", "perturb_site", "observe", "cut"))
    graphless: bool = True
    reach = "currents"

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        method = given.get("method", "ridge")
        known = method in METHODS.own and method != "ridge"
        return {"ridge": f"with method = {method!r}"} if known else {}

    def __init__(
        self,
        copies: Annotated[int, Range(2)] = 17,
        sigma: Positive = 0.2,
        method: Annotated[str, METHODS] = "ridge",
        sites: Literal["all", "round_robin"] | tuple[str, ...] = "all",
        ridge: NotNegative = 0.1,
        time_bin: Count | Literal["trial"] | None = None,
    ) -> None:
        validate(WeakGradient, locals())
        super().__init__()
        self.copies, self.sigma, self.method = copies, sigma, method
        self.sites, self.ridge, self.time_bin = sites, ridge, time_bin
        self.directions, self.regression = METHODS[method]
        if not isinstance(sites, str):
            self.needs, self.graphless = self.needs | {"vjp"}, False

    def chosen(self, round: Round) -> tuple[str, ...]:
        """Return the sites that are perturbed in this step."""
        if self.sites == "all":
            return round.perturbed
        if self.sites == "round_robin":
            return (round.perturbed[round.step % len(round.perturbed)],)
        for name in self.sites:
            if name not in round.hidden:
                raise CapabilityError(f"no hidden site {name!r}: {nearest(name, round.hidden)}")
        return tuple(self.sites)

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: noise at the chosen sites, cut behind them."""
        names = self.chosen(round)
        width = round.width(self.time_bin)
        sizes = unit_sizes(round.shapes, names, width)
        shape = (self.copies - 1, round.batch, sum(sizes.values()))
        check_peak(self.method, shape[0], shape[2])
        directions = parallel.rows(
            lambda count: self.directions(
                (shape[0], count, shape[2]), round.generator, round.dtype
            ),
            round.batch,
            axis=1,
        )
        noise = {}
        for name, part in split(directions, sizes).items():
            site = round.shapes[name]
            part = part * (self.sigma * round.scales[name])
            count = bins(site.steps, width)
            noise[name] = part.view(*shape[:2], count, *site.units).to(round.device)
        cut = names if not isinstance(self.sites, str) else round.perturbed
        if round.closed_loop:
            check_by_copy(self.method, round)
        plan = Plan(noise=noise, time_bin=width, cut=frozenset(cut))
        return (dataclasses.replace(plan, observe_inputs=round.closed_loop),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the share of the estimated gradient of every visit of the chosen sites."""
        (trace,) = traces
        if round.closed_loop:
            weights = self.weights(trace, round)
            for name in self.chosen(round):
                yield from self._by_copies(name, weights[name], trace, round)
            return
        for name, gradient in self.estimates(trace, round).items():
            yield from trace.sites[name].deliver(gradient)

    def weights(self, trace: Trace, round: Round) -> dict[str, Tensor]:
        """Return what weighs the directions of each copy and bin at each site, ``[m, B, K]``."""
        width, directions = trace.plan.time_bin, self.seen(self._directions(trace, round))
        found = {}
        for name in self.chosen(round):
            tails = trace.tails(round.shapes[name].steps, width)
            losses = trace.losses[..., None] if tails is None else tails
            found[name] = copy_weights(self.method, losses, directions, self.ridge)
        return found

    def _by_copies(
        self, name: str, weights: Tensor, trace: Trace, round: Round
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what a site's layers make of the copies' own inputs, with its cotangent.

        ``dL/dW = sum_(s, t) w_s u_s[t] x_s[t]``: where what a copy receives follows from what it
        did, its noise says nothing about the clean copy's inputs.
        """
        site, width = trace.sites[name], trace.plan.time_bin
        noise = _noise(trace, name)
        lengths = torch.tensor(bin_lengths(site.shape.steps, width), device=noise.device)
        weights = weights * lasting(trace, lengths)
        scale = self.sigma * round.scales[name]
        shape = (*weights.shape, *[1] * (noise.dim() - 3))
        parts = self.seen(noise / scale) * (weights / lengths).view(shape) / (scale * round.batch)
        steps = parts.repeat_interleave(lengths, 2).to(noise.dtype)  # [m, B, T, *U]
        for layer, received in zip(round.site_layers[name], site.received, strict=True):
            late = steps.shape[2] - len(received)
            cotangent = steps[:, :, late:].movedim(2, 0).flatten(0, 2)
            yield respond_to(name, round.layers[layer], torch.cat(received)), cotangent

    def estimates(self, trace: Trace, round: Round) -> dict[str, Tensor]:
        """Return the estimated gradient of the mean loss at each chosen site, ``[B, K, *U]``.

        With local losses each site takes those of its own block, regressed on the noise at all
        sites: the noise of the blocks before moves them, too.
        """
        names, width = self.chosen(round), trace.plan.time_bin
        sizes = unit_sizes(round.shapes, names, width)
        scales = {name: self.sigma * round.scales[name] for name in names}
        directions = self.seen(self._directions(trace, round))
        slopes: dict[str, dict[str, Tensor]] = {}
        found = {}
        for name in names:
            owner = round.owners.get(name, "")
            tails = None if owner else trace.tails(round.shapes[name].steps, width)
            if tails is not None:
                place = sum(sizes[other] for other in names[: names.index(name)])
                slope = binned(self.method, tails, directions, place, sizes[name], self.ridge)
                found[name] = slope.view(_noise(trace, name).shape[1:]) / (
                    scales[name] * round.batch
                )
                continue
            if owner not in slopes:
                slope = self.regression(round.losses(trace, name), directions, self.ridge)
                slopes[owner] = split(slope, sizes)
            gradient = slopes[owner][name] / (scales[name] * round.batch)
            found[name] = gradient.view(_noise(trace, name).shape[1:])
        return found

    def _directions(self, trace: Trace, round: Round) -> Tensor:
        """Return the noise at the chosen sites in units of its size, ``[m, B, D]``."""
        parts = {name: _noise(trace, name).flatten(2) for name in self.chosen(round)}
        sizes = {name: self.sigma * round.scales[name] for name in parts}
        return torch.cat([part / sizes[name] for name, part in parts.items()], dim=-1)

    def seen(self, directions: Tensor) -> Tensor:
        """Return what the estimate knows of the directions ``[m, B, D]``: all of them."""
        return directions


def check_by_copy(method: str, round: Round) -> None:
    """Refuse a method whose slope is no sum over copies, in a closed loop.

    Raises:
        CapabilityError: it is none, or a site has a local loss.
    """
    if method not in BY_COPY:
        raise CapabilityError(
            f"method = {method!r}: in an environment each copy has inputs of its own, and its "
            f"noise must be credited by itself: take one of {', '.join(sorted(BY_COPY))}"
        )
    if any(round.owners.values()):
        raise CapabilityError("local losses in an environment: leave local out")


def lasting(trace: Trace, lengths: Tensor) -> Tensor:
    """Return which bins begin before an episode ends in a noisy copy, ``[m, B, K]``, or 1."""
    if trace.alive is None:
        return torch.ones((), device=lengths.device)
    firsts = lengths.cumsum(0) - lengths
    return trace.alive[1:][..., firsts].to(trace.losses.dtype)


def respond_to(name: str, layer: torch.nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer makes of other inputs, with the graph that leads to its parameters.

    Raises:
        CapabilityError: it is no linear or convolutional layer.
    """
    if not isinstance(layer, LAYERS):
        raise CapabilityError(
            f"site {name}: {type(layer).__name__} cannot be shown the copies' own inputs: in an "
            "environment take WeightPerturbation"
        )
    with torch.enable_grad():
        weight, bias = effective_parameters(layer)
        return respond(layer, weight, inputs, bias)


def check_peak(method: str, copies: int, dimensions: int) -> None:
    """Refuse a regression without penalty where it has as many noisy copies as unknowns.

    Its mean square error grows as ``D / (m - D - 1)`` and has its peak at ``m = D``.

    Raises:
        RecipeError: ``m`` is within one of ``D``.
    """
    if method in ("least_squares", "anchored") and abs(copies - dimensions) <= 1 < dimensions:
        raise RecipeError(
            f"estimator: method = {method!r} with {copies} noisy copies for {dimensions} "
            "dimensions: its error peaks there; take method = 'ridge', or copies well below or "
            "above"
        )


def unit_sizes(
    shapes: Mapping[str, SiteShape], names: Sequence[str], time_bin: int | None
) -> dict[str, int]:
    """Return the number of perturbed dimensions ``K prod(U)`` of each site."""
    return {
        name: bins(shapes[name].steps, time_bin) * math.prod(shapes[name].units) for name in names
    }


def split(values: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Split the last axis by site."""
    return dict(zip(sizes, values.split(list(sizes.values()), dim=-1), strict=True))


def _noise(trace: Trace, name: str) -> Tensor:
    noise = trace.sites[name].noise
    assert noise is not None
    return noise
