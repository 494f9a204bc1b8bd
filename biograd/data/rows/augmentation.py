"""Augmentation of events: each time that a trial is learned from, it is another one."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from biograd.checking import Checked, Fraction, NotNegative, Range
from biograd.data.source import Key
from biograd.errors import RecipeError
from biograd.randomness import derive_seed

Shift = Annotated[int, Range(0)]


@dataclasses.dataclass(frozen=True)
class Augmentation(Checked):
    """What changes in the training rows: the table ``[augmentation]`` of a recipe.

    In this order: events are left out with probability ``drop``; all times are moved by one draw,
    uniform within ``delay_ms``, and each by its own, normal with deviation ``jitter_ms``; the last
    axis is mirrored in half of the trials; places are moved by one whole number an axis, uniform
    within ``shift``.  Events that leave the sensor, or the time before 0, are lost.

    What is drawn depends on ``seed``, the run's seed, the epoch and the row alone.  Rows that are
    evaluated are never changed.

    Attributes:
        shift: most places, of each axis of the shape; (): none.
    """

    drop: Fraction = 0.0
    delay_ms: NotNegative = 0.0
    jitter_ms: NotNegative = 0.0
    flip: bool = False
    shift: tuple[Shift, ...] = ()
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop == 1:
            raise ValueError("drop = 1: would leave no event")

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return self != Augmentation(seed=self.seed)

    def check(self, shape: tuple[int, ...], where: str) -> None:
        """Refuse what cannot be done to events of a shape.

        Raises:
            RecipeError: with the key.
        """
        if self.shift and len(self.shift) != len(shape):
            raise RecipeError(
                f"{where}: augmentation.shift = {list(self.shift)}: the events have shape "
                f"{list(shape)}"
            )
        if self.flip and len(shape) < 2:
            raise RecipeError(
                f"{where}: augmentation.flip: mirrors the columns of a camera; these events have "
                f"shape {list(shape)}"
            )

    def __call__(
        self, times: np.ndarray, numbers: np.ndarray, shape: tuple[int, ...], key: Key, row: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the changed events of a trial.

        Args:
            times: milliseconds ``[n]``.
            numbers: of channels ``[n]``, in ``shape``.
        """
        stream = np.random.default_rng(derive_seed(self.seed, "augmentation", *key, row))
        if self.drop:
            kept = stream.random(len(times)) >= self.drop
            times, numbers = times[kept], numbers[kept]
        delay = stream.uniform(-self.delay_ms, self.delay_ms)
        times = times + delay + self.jitter_ms * stream.standard_normal(len(times))
        times, numbers = times[times >= 0], numbers[times >= 0]
        mirrored = self.flip and stream.random() < 0.5
        moved = [int(stream.integers(-most, most + 1)) for most in self.shift]
        if not (mirrored or any(moved)):
            return times, numbers
        places = list(np.unravel_index(numbers, shape))
        if mirrored:
            places[-1] = shape[-1] - 1 - places[-1]
        places = [place + by for place, by in zip(places, moved or [0] * len(shape), strict=True)]
        inside = np.logical_and.reduce(
            [(place >= 0) & (place < size) for place, size in zip(places, shape, strict=True)]
        )
        kept_places = tuple(place[inside] for place in places)
        return times[inside], np.ravel_multi_index(kept_places, shape).astype(np.int64).reshape(-1)
