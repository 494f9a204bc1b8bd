"""Firing rates that the units of a population are to have."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from torch import Tensor

from biograd.checking import Positive
from biograd.tasks.task import Metrics, Task, Totals, check_numbers, known, ratio, refuse, vectors


@dataclasses.dataclass(frozen=True)
class Rates(Task):
    """Target firing rates in Hz, ``[B, K]``, NaN unknown; the outputs count spikes.

    ``f = o / duration``, with the counts of a trial ``[B, K]`` or of its steps ``[B, T, K]``; the
    loss is the mean over the known units of ``((f - f*) / scale)^2`` in each trial, which also
    draws the trials together: rates of a mean over trials would tie them.

    Args:
        duration_ms: length of a trial.
        scale_hz: an error of this size costs 1.
    """

    duration_ms: Positive = 1000.0
    scale_hz: Positive = 10.0

    headline: ClassVar[str] = "rmse_hz"

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is no rate."""
        check_numbers(dataclasses.replace(self, timed=False), targets, where)
        refuse(targets < 0, where, "a rate is below 0 Hz")

    def _error(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        rates = (outputs.sum(1) if self.timed else outputs) * (1000 / self.duration_ms)
        targets, mask = known(rates, targets)
        return (rates - targets).square(), mask

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        error, mask = self._error(outputs, targets)
        return error.sum(-1) / (self.scale_hz**2 * mask.sum(-1).clamp_min(1))

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the counts that the rates ask for; of a step, their share."""
        counts = vectors(outputs[:, 0] if self.timed else outputs, targets)
        counts = counts * (self.duration_ms / 1000)
        return (counts[:, None] / outputs.shape[1]).expand_as(outputs) if self.timed else counts

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the squared error in Hz^2."""
        error, mask = self._error(outputs, targets)
        return {"rmse_hz": (error.sum(-1), mask.sum(-1))}

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the root of the mean squared error over all trials and units, in Hz."""
        (error,), (count,) = totals["rmse_hz"]
        return {"rmse_hz": math.sqrt(ratio(error, count))}
