"""Measured gain: the error passes down the weights, and past each neuron by its measured slope."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from biograd.contracts import Capability, Plan, Round, SiteTrace, Trace, bin_lengths, bins
from biograd.errors import CapabilityError
from biograd.estimators.estimator import Estimator, arriving
from biograd.ranks import parallel
from biograd.recipes import Count, NotNegative, Positive, Range, validate


class MeasuredGain(Estimator):
    """Measure how much of its activity each neuron's current moves; transport the error exactly.

    Noisy copies add ``e = sigma r u`` to the current of every hidden neuron, with ``r`` the root
    mean square of the site's currents.  With ``dz`` the change of a neuron's own current in a
    copy, ``dh`` that of its activity and ``c`` the credit that arrives there::

        c_L = dL/dh_L,   c_l = W_{l+1}' delta_{l+1}
        delta_l = sum_s dz_s (sum_t c_l[t] dh_s[t]) / (sum_s dz_s^2 + lambda (sigma r)^2)

    For each neuron and example by itself; ``t`` runs from the beginning of the noise's time bin to
    the end of the trial.  What lies between a neuron's activity and the next current (weights,
    pooling, a readout's filter) is differentiated as it is, and the readout's gradient is exact;
    of the neuron nothing is known, so that it need not be differentiable.  For small noise and
    smooth neurons without memory this is back-propagation.

    Noise is balanced: over the copies a neuron's ``u`` are the ``m = S - 1`` normal scores of mean
    square 1 in random order.  Their sum is zero and their power the same for all, so that no slope
    is divided by what chance made small; one noisy copy has a random sign.

    A residual block's skip takes its share of the credit, and what the skip alone moves is no part
    of ``dh``.  Missing is what a neuron does by way of others of its layer: by recurrent weights,
    by layer normalisation.  In training, batch normalisation counts as constant.  A normalisation
    whose output is named as the current, ``biograd.Site(..., current=...)``, is passed exactly.

    Args:
        copies: ``S``, the clean one included.
        sigma: size of the noise relative to the site's root-mean-square current.
        ridge: ``lambda``; it shrinks the slopes of the first layer by ``m / (m + lambda)``, and by
            about as much those of later ones, whose noise also comes from below.
        time_bin: number of time steps in which the noise stays constant, or "trial"; None: one
            step where inputs or targets vary in time, else the whole trial.
            The steps of a bin share its credit equally.

    Raises:
        CapabilityError: a block's output does not have one value for each neuron.
    """

    needs: frozenset[Capability] = frozenset(("loss", "perturb_site", "observe", "cut"))
    passes = "S forward, 1 backward through the weights"
    bias = (
        "second order in sigma; shrinks (ridge); no credit through recurrent weights; steps of a "
        "time bin share its credit"
    )
    unbounded = "credit follows the loss of the outputs through measured gains"
    closed_loop = "copies see other inputs there, by which the gain cannot be measured"
    reference = "Stein 1981 (slopes by noise); Rumelhart et al. 1986 (transport)"
    one_to_one = True
    reach = "normalisations"
    blockwise = True
    divides = "examples"

    def __init__(
        self,
        copies: Annotated[int, Range(2)] = 5,
        sigma: Positive = 0.2,
        ridge: NotNegative = 0.3,
        time_bin: Count | Literal["trial"] | None = None,
    ) -> None:
        validate(MeasuredGain, locals())
        super().__init__()
        self.copies, self.sigma, self.ridge, self.time_bin = copies, sigma, ridge, time_bin

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: noise at all hidden sites, credit stopped at both ends of each block."""
        hidden, noise = frozenset(round.hidden), {}
        for name in round.hidden:
            site = round.shapes[name]
            shape = (round.batch, bins(site.steps, round.width(self.time_bin)), *site.units)
            drawn = balanced(self.copies - 1, shape, round.generator, round.dtype)
            noise[name] = (drawn * self._size(name, round)).to(round.device)
        return (
            Plan(
                noise=noise,
                time_bin=round.width(self.time_bin),
                cut=hidden,
                observe=True,
                boundaries=hidden,
                slots=True,
                observe_activity=True,
            ),
        )

    def _size(self, name: str, round: Round) -> float:
        return self.sigma * round.scales[name]

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the credit of every site's current, from the last to the first.

        A block may lead from its input, or from parameters behind its current, to its activity by
        a way that the cut leaves open (a skip, a normalisation); that way takes the credit, too.
        """
        (trace,) = traces
        above = [(trace.loss, torch.ones_like(trace.loss))]
        for name in reversed(round.hidden):
            site = trace.sites[name]
            if name in round.cells:  # what followed saw no credit
                arrived, pairs = own_credit(trace, name), []
            else:
                arrived = arrived_at(site, name, above)
                pairs = through(site, arrived) if name in round.blocks else []
            pairs += site.deliver(self.passed(trace, name, arrived, round))
            above += [(tensor, delta) for tensor, delta in pairs if tensor.requires_grad]
            yield from pairs

    def passed(self, trace: Trace, name: str, arrived: Tensor, round: Round) -> Tensor:
        """Return the credit of a site's current, ``[B, K, *U]``.

        Args:
            arrived: the derivative of the mean loss by the block's output.
        """
        site = trace.sites[name]
        moved = own_change(site, [trace.sites[other] for other in round.hidden if other != name])
        response = responses(site, name, moved * arrived.to(round.dtype))
        assert site.observed is not None
        change = (site.observed - site.current()).to(round.dtype)
        power = change.square().sum(0) + self.ridge * self._size(name, round) ** 2
        return (change * response).sum(0) / power.clamp_min(torch.finfo(power.dtype).tiny)


def balanced(
    copies: int, shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Return noise ``[m, *shape]`` with the same ``m`` values for all, each time in another order.

    The values are the normal scores ``Phi^-1((i - 1/2) / m)``, scaled to mean square 1; a single
    one has a random sign.
    """
    keys = parallel.rows(
        lambda rows: torch.rand(copies, rows, *shape[1:], generator=stream, device=stream.device),
        shape[0],
        axis=1,
    )
    if copies == 1:
        return torch.where(keys < 0.5, -1.0, 1.0).to(dtype)
    ranks = torch.arange(copies, dtype=torch.float64, device=stream.device)
    scores = torch.special.ndtri((ranks + 0.5) / copies)
    scores = scores / scores.square().mean().sqrt()
    return scores.to(dtype)[keys.argsort(0)]


def own_credit(trace: Trace, name: str) -> Tensor:
    """Return the derivative of the mean of a site's own local loss by its activity."""
    activity = trace.sites[name].output
    with torch.enable_grad():
        leaf = activity.detach().requires_grad_()
        losses = trace.objective.local[name](leaf, trace.targets)
        return torch.autograd.grad(losses.sum() / len(losses), leaf)[0]


def arrived_at(site: SiteTrace, name: str, above: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the derivative of the mean loss by a block's output.

    Args:
        above: the loss and what lies between it and the block, with their cotangents.

    Raises:
        CapabilityError: nothing that follows takes the block's output.
    """
    if site.slot is None:
        raise CapabilityError(
            f"site {name}: no layer behind it takes its activity: name the module that returns it, "
            "sites=[biograd.Site(..., activity=...)]"
        )
    tensors = [tensor for tensor, _ in above]
    messages = [cotangent.to(tensor.dtype) for tensor, cotangent in above]
    return arriving(tensors, messages, site.slot)


def through(site: SiteTrace, arrived: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the credit of the ways to a block's output that the cut leaves open."""
    activity = site.activity
    return [(activity, arrived)] if activity is not None and activity.requires_grad else []


def own_change(site: SiteTrace, others: Sequence[SiteTrace]) -> Tensor:
    """Return the change of a block's output that its current made, ``[m, B, ...]``.

    What a skip ``J`` brings from other blocks' outputs is taken off.  ``J dh`` is found by
    differentiating twice: ``J'w`` is linear in ``w``, and its derivative along ``dh`` is ``J dh``.
    """
    output, change = site.output, difference(site)
    known = [other for other in others if other.slot is not None]
    if not output.requires_grad or not known:
        return change
    slots = [other.slot for other in known if other.slot is not None]
    weights = torch.zeros_like(output, requires_grad=True)
    found = torch.autograd.grad(output, slots, weights, create_graph=True, allow_unused=True)
    skips = [(g, difference(other)) for g, other in zip(found, known, strict=True) if g is not None]
    if not skips:
        return change
    ways, moves = zip(*skips, strict=True)
    brought = [
        torch.autograd.grad(ways, weights, [move[copy] for move in moves], retain_graph=True)[0]
        for copy in range(len(change))
    ]
    return change - torch.stack(brought)


def difference(site: SiteTrace) -> Tensor:
    """Return what the noise changed in a block's output, ``[m, B, ...]``."""
    assert site.observed_activity is not None
    return site.observed_activity - site.output.detach()


def responses(site: SiteTrace, name: str, change: Tensor) -> Tensor:
    """Return the change of ``sum_t c[t] h[t]`` of each unit from each bin on, ``[m, B, K, *U]``.

    Args:
        change: of ``c h``, in the shape of the block's outputs, ``[m, B, ...]``.

    Raises:
        CapabilityError: the block's output does not have one value for each unit.
    """
    units, steps = site.shape.units, site.shape.steps
    lengths, shape = bin_lengths(steps, site.time_bin), tuple(change.shape[2:])
    if shape in (units, (math.prod(units),)):  # the whole activity follows every bin
        return change.view(*change.shape[:2], 1, *units).expand(-1, -1, len(lengths), *units)
    if shape[1:] != units or (len(lengths) > 1 and shape[0] != steps):
        raise CapabilityError(
            f"site {name}: its units {units} and its block's output {shape} do not match one to "
            "one: name the module of its neurons, sites=[biograd.Site(..., activity=...)]"
        )
    if len(lengths) == 1:
        return change.sum(2, keepdim=True)
    parts = torch.stack([part.sum(2) for part in change.split(lengths, dim=2)], 2)
    return parts.flip(2).cumsum(2).flip(2)
