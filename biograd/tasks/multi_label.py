"""Several labels an example, each there or not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from biograd.tasks.task import Metrics, Task, check_numbers, counted, known, refuse, shares


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """``K`` labels: targets 0 or 1, ``[B, (T,) K]``, NaN unknown.

    The loss is the binary cross-entropy of ``sigmoid(o)`` summed over the labels; of a timed task
    the mean over the steps that have a label.
    """

    headline: ClassVar[str] = "exact"
    better: ClassVar[str] = "higher"

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is neither 0 nor 1 nor missing."""
        check_numbers(self, targets, where)
        refuse((targets != 0) & (targets != 1) & ~targets.isnan(), where, "a label is not 0 or 1")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        return super().losses(outputs, targets) if self.timed else self._each(outputs, targets)[0]

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every step over their number, ``[B, T]``."""
        return shares(*self._each(outputs, targets))

    def part(
        self, targets: Tensor, first: int, steps: int, trial: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return the targets of some steps, and their share in the mean over the trial."""
        if not self.timed:
            return None
        mask = (~targets.isnan()).any(-1)
        return targets[:, first : first + steps], counted(mask, first, steps)

    def _each(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mask = ~targets.isnan()
        labels = torch.where(mask, targets, 0).to(outputs.dtype)
        found = functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return (found * mask).sum(-1), mask.any(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the shares of examples with all labels right, and of right labels."""
        mask = known(outputs, targets)[1]
        right = ((outputs > 0) == (targets > 0.5)) & mask
        exact, whole = (right | ~mask).all(-1), mask.any(-1)
        rows = len(outputs)
        return {
            "exact": ((exact & whole).reshape(rows, -1).sum(1), whole.reshape(rows, -1).sum(1)),
            "labels": (right.flatten(1).sum(1), mask.flatten(1).sum(1)),
        }
