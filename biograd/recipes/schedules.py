"""Schedules: the learning rate over a training, as a factor on ``training.learning_rate``.

While less than ``w B`` of a budget ``B`` is spent, with ``w = training.warm_up``, the rate rises in
a line from a hundredth; then ``x = done / whole`` runs from 0 to 1, where ``done`` is what is spent
behind the warm-up, of ``whole = B - w B``.  They are functions of ``x`` alone, so that a budget in
steps, passes or seconds means the same, and a resumed run has nothing to remember.  "plateau" is
lowered by what the validation rows tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated

from biograd.checking import Checked, Count, Fraction, Range

FIRST = 0.01
"""Factor of the first step of a warm-up."""


def constant(_recipe: RateRecipe, _done: float, _whole: float) -> float:
    """Return 1."""
    return 1.0


def cosine(_recipe: RateRecipe, done: float, whole: float) -> float:
    """Return ``(1 + cos(pi x)) / 2``."""
    return 0.5 * (1 + math.cos(math.pi * done / whole))


def linear(_recipe: RateRecipe, done: float, whole: float) -> float:
    """Return ``1 - x``."""
    return 1 - done / whole


def exponential(recipe: RateRecipe, done: float, whole: float) -> float:
    """Return ``decay^x``: at the end ``training.decay``."""
    return float(recipe.decay ** (done / whole))


def step(recipe: RateRecipe, done: float, whole: float) -> float:
    """Return ``decay^n`` behind ``n`` of the milestones."""
    return float(recipe.decay ** sum(done >= place * whole for place in recipe.milestones))


SCHEDULES: Mapping[str, Callable[[RateRecipe, float, float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "exponential": exponential,
    "step": step,
    "plateau": constant,  # and the factor of the epochs that brought nothing
}
READS = {"exponential": ("decay",), "step": ("decay", "milestones"), "plateau": ("decay", "wait")}
"""Keys of ``[training]`` that a schedule reads beside ``warm_up``."""


@dataclasses.dataclass(frozen=True)
class RateRecipe(Checked):
    """The learning rate over a training, beside its size."""

    schedule: Annotated[str, SCHEDULES] = "constant"
    warm_up: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of the budget in which the learning rate rises from a hundredth to its full value."""
    decay: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Factor of the schedules "exponential" (at the end), "step" and "plateau" (each time)."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """Shares of the budget behind the warm-up at which the schedule "step" lowers the rate."""
    wait: Count = 5
    """Epochs without a better figure on the validation rows before "plateau" lowers the rate."""


def factor(recipe: RateRecipe, spent: float, budget: float) -> float:
    """Return the factor on the learning rate when so much of the budget is spent.

    >>> recipe = RateRecipe(schedule="linear", warm_up=0.5)
    >>> [factor(recipe, spent, 8) for spent in (0, 2, 4, 6)]
    [0.01, 0.505, 1.0, 0.5]
    """
    warm, spent = recipe.warm_up * budget, min(spent, budget)
    if spent < warm:
        return FIRST + (1 - FIRST) * spent / warm
    return SCHEDULES[recipe.schedule](recipe, spent - warm, budget - warm)
