"""Kickback: the error at the outputs reaches every unit unweighted."""

from __future__ import annotations

import math
from typing import Literal

import torch

from biograd.contracts import Round, Trace
from biograd.errors import CapabilityError
from biograd.estimators.broadcast import Broadcast
from biograd.recipes import Positive, validate


class Kickback(Broadcast):
    """Send the error to every hidden unit through weights of one: direct feedback with ``B = 1``.

    "sum": ``delta_h = scale sum_j e_j`` for every unit.  "turns": unit ``u`` receives
    ``scale e_j`` of the output ``j = u mod outputs`` alone; with one output both are
    ``delta_h = scale e``.

    Why "turns" is the default: the errors of a cross-entropy sum to zero over the classes, and
    those of a squared error hold nothing of the class.

    Args:
        outputs: "sum" or "turns".
        scale: the one that stands for a weight.
        through_time: credit also passes through a block's recurrent weights, transported.
        sites: "all" hidden sites, or the names of those that end a block.

    Raises:
        CapabilityError: with "sum", the errors of the outputs sum to zero (when prepared).
    """

    bias = "which way a unit acts on the outputs is lost"
    reference = "Balduzzi, Vanchinathan & Buhmann 2015, arXiv 1411.6191"

    def __init__(
        self,
        outputs: Literal["sum", "turns"] = "turns",
        scale: Positive = 1.0,
        through_time: bool = False,
        sites: Literal["all"] | tuple[str, ...] = "all",
    ) -> None:
        validate(Kickback, locals())
        super().__init__(through_time, sites)
        self.outputs, self.scale = outputs, scale

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
