"""Kickback: the error at the outputs reaches every unit, weighed by the unit's influence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.errors import CapabilityError
from biograd.estimators.broadcast import Broadcast
from biograd.recipes import Positive, validate


class Kickback(Broadcast):
    """Send the error to every hidden unit, times the unit's influence on the layer above.

    ``delta_j = e tau_j`` with ``tau_j = sum_k w_jk [k active]`` over the units ``k`` that receive
    unit ``j``, active where the derivative from their current to their activity is not zero.  What
    an activity does to the outputs directly has the exact gradient, which for one output is
    ``e w_j``.  Over time ``tau`` is the mean over the steps.  With ``influence = False`` it is the
    simplified form in Table 1 of Czarnecki et al. 2017, direct feedback with ``B = 1``.

    Of several outputs, "sum": ``e = scale sum_j e_j`` for every unit; "turns": unit ``u`` receives
    ``scale e_j`` of the output ``j = u mod outputs`` alone; with one output both are ``scale e``.

    Why "turns" is the default: the errors of a cross-entropy sum to zero over the classes, and
    those of a squared error hold nothing of the class.

    Args:
        outputs: "sum" or "turns".
        influence: multiply by ``tau``; False: every unit receives the error as it is.
        scale: on the error.
        through_time: credit also passes through a block's recurrent weights, transported.
        sites: "all" hidden sites, or the names of those that end a block.

    Raises:
        CapabilityError: with "sum", the errors of the outputs sum to zero (when prepared).
    """

    passes = "1 forward, 1 product with the influence"
    coincides = "in the last hidden block"
    bias = (
        "a unit's influence on the outputs is taken for that on the layer above; simplified "
        "(influence = false): which way a unit acts is lost"
    )
    reference = (
        "Balduzzi, Vanchinathan & Buhmann 2015, arXiv 1411.6191; simplified: Czarnecki et al. "
        "2017, arXiv 1703.00522"
    )

    def __init__(
        self,
        outputs: Literal["sum", "turns"] = "turns",
        influence: bool = True,
        scale: Positive = 1.0,
        through_time: bool = False,
        sites: Literal["all"] | tuple[str, ...] = "all",
    ) -> None:
        validate(Kickback, locals())
        super().__init__(through_time, sites)
        self.outputs, self.influence, self.scale = outputs, influence, scale

    def build(self, trace: Trace, round: Round) -> None:
        """Make the matrices of ones.

        Raises:
            CapabilityError: what would be broadcast is zero throughout.
        """
        error = self.signal(trace, round)
        zero = 1e-5 * float(error.abs().sum())
        if self.outputs == "sum" and float(error.sum(2).abs().sum()) <= zero:
            raise CapabilityError(
                "kickback broadcasts the sum of the outputs' errors, which is zero with this loss "
                "(a cross-entropy): set outputs='turns' or another loss"
            )
        super().build(trace, round)

    def make(self, outputs: int, shapes: dict[str, tuple[int, ...]], round: Round) -> None:
        """Make the matrices: ones throughout, or where the unit listens."""
        for name, shape in shapes.items():
            matrix = torch.ones(outputs, math.prod(shape), dtype=round.dtype, device=round.device)
            if self.outputs == "turns":
                unit, output = torch.arange(matrix.shape[1]), torch.arange(outputs)
                listens = unit % outputs == output.unsqueeze(1)
                matrix = matrix * listens.to(matrix)
            self.matrices[name] = self.scale * matrix.view(outputs, *shape)

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan; what follows each block sees a leaf, by which influence is found."""
        (plan,) = super().plans(round)
        return (Plan(boundaries=plan.boundaries, detach=plan.detach, slots=self.influence),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every block's activity with the error that it receives, times its influence."""
        if not self.influence:
            yield from super().credit(traces, round)
            return
        (trace,) = traces
        signal, sites = self.signal(trace, round), self.chosen(round)
        slots = [slot for name in sites if (slot := trace.sites[name].slot) is not None]
        direct = _by(slots, [trace.loss], [None])
        above = _by(slots, *_active(trace, round))
        for name, exact, weighed in zip(sites, direct, above, strict=True):
            site = trace.sites[name]
            if weighed is None:
                yield site.output, torch.zeros_like(site.output) if exact is None else exact
                continue
            influence = weighed.mean(1, keepdim=True) if site.timed else weighed
            received = self.received(name, signal, site.output) * influence
            yield site.output, received if exact is None else received + exact


def _active(trace: Trace, round: Round) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the currents of all hidden layers, and which of their units are active."""
    currents: list[Tensor] = []
    masks: list[Tensor | None] = []
    for name in round.hidden:
        site = trace.sites[name]
        parts = [part for visits in site.visits for part in visits.outputs]
        outputs = [part for part in parts if part.requires_grad]
        if site.activity is None or not site.activity.requires_grad or not outputs:
            continue
        found = torch.autograd.grad(
            site.activity.sum(), outputs, retain_graph=True, allow_unused=True
        )
        for current, slope in zip(outputs, found, strict=True):
            if slope is not None:
                currents.append(current)
                masks.append((slope != 0).to(current.dtype))
    return currents, masks


def _by(
    slots: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Return the derivatives of tensors by leaves; None where nothing leads from one to them."""
    if not slots or not tensors:
        return [None] * len(slots)
    return torch.autograd.grad(tensors, slots, cotangents, retain_graph=True, allow_unused=True)
