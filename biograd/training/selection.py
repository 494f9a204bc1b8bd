"""What the validation rows have said so far: which epoch was best, and how long ago that was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Selection:
    """The figures of all epochs, as far as a choice needs them.

    Attributes:
        best: the best figure; None: there is none yet.
        step: of the training, after which it was found.
        epoch: the same, from 1.
        idle: epochs since then that brought nothing better.
        waited: of these the ones since the rate was lowered last.
        lowered: how often the schedule "plateau" has lowered the rate.
    """

    best: float | None = None
    step: int = 0
    epoch: int = 0
    idle: int = 0
    waited: int = 0
    lowered: int = 0

    def after(self, value: float, better: str, step: int, epoch: int, wait: int) -> Selection:
        """Return the selection with the figure of another epoch.

        Args:
            value: NaN is never better.
            better: "higher" or "lower".
            wait: idle epochs before the rate is lowered.

        >>> found = Selection().after(0.5, "higher", 10, 1, 2).after(0.4, "higher", 20, 2, 2)
        >>> found.best, found.epoch, found.idle, found.after(0.5, "higher", 30, 3, 2).lowered
        (0.5, 1, 1, 1)
        """
        more = self.best is None or (value > self.best) is (better == "higher")
        if more and value != self.best and not math.isnan(value):
            return Selection(value, step, epoch, lowered=self.lowered)
        waited = self.waited + 1
        low = waited >= wait
        return dataclasses.replace(
            self,
            idle=self.idle + 1,
            waited=0 if low else waited,
            lowered=self.lowered + low,
        )

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Selection:
        """Return the selection that a checkpoint kept.

        Raises:
            ValueError: the values are not of one.
        """
        found = cls(**kept)
        counts = dataclasses.asdict(found)
        best = counts.pop("best")
        if any(type(value) is not int or not 0 <= value < 2**53 for value in counts.values()):
            raise ValueError(f"selection is {dict(kept)}")
        if not (best is None or (type(best) in (int, float) and math.isfinite(best))):
            raise ValueError(f"selection: best is {best!r}")
        return found
