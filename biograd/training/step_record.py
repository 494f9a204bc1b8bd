"""What a step of a training found, on one rank and on all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from biograd import ranks, tasks
from biograd.ranks import parallel
from biograd.tasks import flat, folded


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step found: clean loss and metrics of its batch.

    Attributes:
        step: number of steps done, 1 after the first.
        metrics: of the task, by name.
        totals: what the metrics of several steps together follow from.
        informative: share of the noisy copies whose loss differs from the clean one.
        last: whether the step ends its epoch, or the training.
        spent: of the budget, in its own unit (steps, forward passes or seconds).
        stop: number of the signal that asked some rank to stop, 0 if none did.
        gradient_norm: of all gradients before they were clipped; None: they are not.
        each: what is kept of every example, each ``[B]``.
    """

    step: int
    epoch: int
    loss: float
    metrics: Mapping[str, float]
    informative: float
    learning_rate: float
    last: bool
    spent: float
    stop: int = 0
    totals: tasks.Totals = dataclasses.field(default_factory=dict)
    gradient_norm: float | None = None
    each: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StepFigures:
    """What one step found on one rank, or on all together."""

    loss: float
    totals: tasks.Totals
    informative: float
    seconds: float
    stop: int = 0
    each: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def together(self, own: parallel.Share, copies: int, asked: Sequence[int]) -> StepFigures:
        """Return the figures of the whole batch; the time is that of the slowest rank.

        Args:
            own: what this rank has computed.
            copies: number of noisy copies that it has run.
            asked: signals that asked it to stop.
        """
        if ranks.size() == 1:
            return self
        noisy = own.weight * copies
        means = [own.weight * self.loss, noisy * self.informative, noisy]
        last = [self.seconds, float(asked[0] if asked else 0)]
        columns = list(zip(*ranks.table([*means, *last, *flat(self.totals)]), strict=True))
        loss, informed, noisy = (math.fsum(column) for column in columns[:3])
        seconds, stop = max(columns[3]), int(max(columns[4]))
        totals = folded([math.fsum(column) for column in columns[5:]], self.totals)
        informative = informed / noisy if noisy else 1.0
        return StepFigures(loss, totals, informative, seconds, stop, self.each)
