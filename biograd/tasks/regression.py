"""Numbers, of an example or in every step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from biograd.checking import Positive
from biograd.tasks.task import Metrics, Task, Totals, check_numbers, counted, known, ratio, shares

GROUPS = 10
"""Groups of equal size into which the values of a single number are divided."""


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """``K`` numbers: targets ``[B, (T,) K]``, or ``[B, (T)]`` of one output; NaN missing.

    The loss is ``|o - y|^2 / 2``, or Huber's, summed over the outputs; of a timed task the mean
    over the steps that have a target.

    Args:
        loss: "squared_error" or "huber".
        delta: where Huber's loss turns from square to linear.
    """

    loss: Literal["squared_error", "huber"] = "squared_error"
    delta: Positive = 1.0

    headline: ClassVar[str] = "r2"
    better: ClassVar[str] = "higher"

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is not a number of the outputs' shape."""
        check_numbers(self, targets, where)

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
        mask = ~targets.isnan()
        mask = mask.any(-1) if mask.dim() > 2 else mask
        return targets[:, first : first + steps], counted(mask, first, steps)

    def _each(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        targets, mask = known(outputs, targets)
        if self.loss == "huber":
            found = functional.huber_loss(outputs, targets, reduction="none", delta=self.delta)
        else:
            found = 0.5 * (outputs - targets).square()
        return found.sum(-1), mask.any(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the squared error and the moments of the targets, for each output."""
        targets, mask = known(outputs.double(), targets)
        values = targets * mask
        error = (outputs - targets).square()
        moments = (error, values, values.square(), mask)
        course = [part.sum(1) if self.timed else part for part in moments]
        return {"r2": tuple(course), "mse": (course[0].sum(1), course[3].sum(1))}

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return ``R2 = 1 - SS_res / SS_tot``, both summed over all rows, steps and outputs."""
        errors, *moments = totals["r2"]
        total = sum(
            square - value**2 / max(count, 1) for value, square, count in zip(*moments, strict=True)
        )
        rest = {name: parts for name, parts in totals.items() if name != "r2"}
        return {"r2": 1 - ratio(sum(errors), total)} | super().figures(rest)

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the tenth of its values in which a single number lies; else None."""
        if self.timed or targets[0].numel() > 1 or targets.isnan().any():
            return None
        order = targets.flatten().argsort(stable=True).argsort(stable=True)
        return order * GROUPS // max(len(order), 1)


@dataclasses.dataclass(frozen=True)
class TimeSeries(Regression):
    """Regression in every step: targets ``[B, T, K]``, or ``[B, T]`` of one output."""

    timed: bool = True

    @classmethod
    def fitting(cls, targets: object) -> dict[str, int]:
        """Return the number of outputs."""
        shape = torch.as_tensor(targets).shape
        return {"outputs": int(shape[2]) if len(shape) > 2 else 1}
