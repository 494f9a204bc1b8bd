"""From events to steps: which of them count, in which step, on which channel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from biograd.checking import Checked, Count, NotNegative
from biograd.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Binning(Checked):
    """How events are counted in steps: the table ``[binning]`` of a recipe.

    Attributes:
        start_ms, end_ms: events outside are left out, and time begins at ``start_ms``; 0: to the
            last event.
        binary: whether several events of a channel in a step are one.
        pool: channels side by side that are summed, along each axis of the shape; (): none are.
    """

    start_ms: NotNegative = 0.0
    end_ms: NotNegative = 0.0
    binary: bool = False
    pool: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_ms and self.end_ms <= self.start_ms:
            raise ValueError(f"end_ms = {self.end_ms:g}: must be more than start_ms")

    @property
    def windowed(self) -> bool:
        """Whether events can lie outside of what is shown."""
        return bool(self.start_ms or self.end_ms)

    def steps(self, dt_ms: float, where: str) -> int:
        """Return the steps of the window; 0: it has no end.

        Raises:
            RecipeError: it is not a whole number of them.
        """
        if not self.end_ms:
            return 0
        found = round((self.end_ms - self.start_ms) / dt_ms)
        if found < 1 or abs(found * dt_ms - (self.end_ms - self.start_ms)) > 1e-6 * dt_ms:
            raise RecipeError(
                f"{where}: binning: {self.start_ms:g} to {self.end_ms:g} ms is not a whole number "
                f"of steps of encoding.dt_ms = {dt_ms:g}"
            )
        return found

    def pooled(self, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
        """Return the shape of what is summed.

        Raises:
            RecipeError: ``pool`` has another number of axes.
        """
        if not self.pool:
            return shape
        if len(self.pool) != len(shape):
            raise RecipeError(
                f"{where}: binning.pool = {list(self.pool)}: the events have shape {list(shape)}"
            )
        return tuple(math.ceil(size / width) for size, width in zip(shape, self.pool, strict=True))

    def channels(self, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the numbers that channels have among the sums."""
        if not self.pool:
            return numbers
        places = np.unravel_index(numbers, shape)
        summed = [place // width for place, width in zip(places, self.pool, strict=True)]
        return np.ravel_multi_index(summed, self.pooled(shape, "")).astype(np.int64).reshape(-1)
