"""A loss of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biograd.tasks.task import ByFunction, per_example, refuse


def none(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return zeros: no loss."""
    return outputs.new_zeros(len(outputs))


@dataclasses.dataclass(frozen=True)
class OwnLoss(ByFunction):
    """A user's own loss: a function of outputs and targets that returns one value per example.

    ``[B]``, or ``[B, T]`` of outputs in time, which is summed.  One that returns no graph is
    served by the rules that need none.

    Args:
        loss: the function.
    """

    outputs: int = 0
    loss: Callable[..., Any] = none

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse infinite targets; the rest is the function's."""
        if targets.is_floating_point():
            refuse(targets.isinf(), where, "a target is infinite")

    def check_outputs(self, outputs: Tensor) -> None:
        """Take any outputs: the function knows them."""

    def by_step(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what the function finds, ``[B]`` or ``[B, T]``."""
        return per_example(self.loss, "loss", outputs, targets)
