"""What the outputs of a network are to be: targets, a loss an example, metrics.

Shapes: ``B`` examples, ``T`` steps, ``K`` outputs.  A network owes ``[B, K]``, or ``[B, T, K]`` to
a task that is ``timed``.

A missing target is NaN, or ``MISSING`` for a class: so a mask travels in the targets and needs no
place of its own in plans, copies, ranks and hooks.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

MISSING = -100
"""A class that is not known; the value that torch's losses ignore."""
Metrics = dict[str, tuple[Tensor, Tensor]]
"""By name sums and counts, each ``[B]``: over rows, batches and ranks a metric is sum / count."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A question to a network.

    Attributes:
        outputs: ``K``, the number of outputs.
        timed: whether the network owes an output in every step, ``[B, T, K]``.
        headline: name of the metric by which runs are compared.
        better: ``"higher"`` or ``"lower"``: which values of it are better.
        differentiable: whether the losses have a graph; rules that need one refuse a task without.
    """

    outputs: int
    timed: bool = False

    headline: ClassVar[str] = "loss"
    better: ClassVar[str] = "lower"
    differentiable: ClassVar[bool] = True

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse targets that cannot be learned from, the whole split at once.

        Args:
            targets: ``[N, ...]``.
            where: opens the message: the data and their split.

        Raises:
            DataError: type, shape or a value; one line with the first row at fault.
        """
        raise NotImplementedError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        return self.stepwise(outputs, targets).sum(1)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the part of every step in the losses of a timed task, ``[B, T]``."""
        raise NotImplementedError

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return sums and counts by name, each ``[B]``; ``headline`` is one of them."""
        raise NotImplementedError

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return a group number a row, int64 ``[N]``; None: any row is like any other.

        Rows are held out and probed in the proportion of the groups.
        """
        return None
