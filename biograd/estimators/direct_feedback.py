"""Direct feedback alignment (DFA): the error at the outputs reaches every block at once."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from biograd.contracts import Round
from biograd.estimators.broadcast import Broadcast
from biograd.estimators.feedback import normal
from biograd.recipes import Count, Positive, validate

SHARED = "shared"


class DirectFeedback(Broadcast):
    """Send the error to every hidden block through fixed random matrices.

    ``delta_h = e B`` with ``e`` the derivative of the loss by the outputs and ``B`` normal with
    standard deviation ``scale / sqrt(units)``, which makes the credit of a block as large as the
    error.  Credit stops behind each block's activity; the block's own derivative is that of
    autograd, the readout's gradient exact.

    In a task in time every step receives its own error; else that of the trial reaches every step
    in full: the derivative by the block's activity summed over the trial.

    Args:
        shared: one matrix serves all blocks, each with its leading part.
        scale: norm of the credit of a block relative to that of the error.
        through_time: credit also passes through a block's recurrent weights, transported; else
            through the neurons' own memory alone.
        sites: "all" hidden sites, or the names of those that end a block.
        online: take credit while the trial runs and forget each part behind it: the same gradient,
            with memory for a trace of every synapse and example but not for the steps.
        chunk: number of steps of a part; None: 25.
    """

    bias = "direction of the random feedback, to which the weights align"
    reference = "Nokland 2016, arXiv 1609.01596; shared: Launay et al. 2020, arXiv 2006.12878"

    def __init__(
        self,
        shared: bool = False,
        scale: Positive = 1.0,
        through_time: bool = False,
        sites: Literal["all"] | tuple[str, ...] = "all",
        online: bool = False,
        chunk: Count | None = None,
    ) -> None:
        validate(DirectFeedback, locals())
        super().__init__(through_time, sites, online, chunk)
        self.shared, self.scale = shared, scale
        self.shapes: dict[str, tuple[int, ...]] = {}

    def make(self, outputs: int, shapes: dict[str, tuple[int, ...]], round: Round) -> None:
        """Draw the matrices."""
        self.shapes = shapes
        if self.shared and shapes:
            widest = max(math.prod(shape) for shape in shapes.values())
            self.matrices[SHARED] = normal((outputs, widest), round) * self.scale
            return
        for name, shape in shapes.items():
            draw = normal((outputs, *shape), round)
            self.matrices[name] = draw * (self.scale / math.sqrt(math.prod(shape)))

    def matrix(self, name: str) -> Tensor:
        """Return the feedback matrix of a site, ``[outputs, *units]``."""
        if not self.shared:
            return self.matrices[name]
        shape = self.shapes[name]
        part = self.matrices[SHARED][:, : math.prod(shape)] / math.sqrt(math.prod(shape))
        return part.unflatten(1, shape)
