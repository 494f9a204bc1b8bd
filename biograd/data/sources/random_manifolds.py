"""Smooth random manifolds: a classification task whose difficulty is set by a few numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from torch import Tensor

from biograd.checking import Checked
from biograd.data.request import MOST_ROWS, Parts, Request, Rows, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.errors import RecipeError
from biograd.randomness import generator
from biograd.recipes import Count, Positive, Range

PRECISION = 1e-3
CLASSES = 10
MOST_FREQUENCIES = 1000


@dataclasses.dataclass(frozen=True)
class ManifoldSettings(Checked):
    """How hard the task is; the recipe's ``shape`` and ``classes`` say how many units and classes.

    Attributes:
        dimension: ``D`` of each manifold.
        smoothness: ``alpha``; the larger, the smoother the manifolds.
        train_rows: training rows of each class.
        test_rows: test rows of each class.
        seed: of the manifolds and the points on them; None: the run's own seed.
    """

    dimension: Count = 1
    smoothness: Positive = 1.0
    train_rows: Annotated[int, Range(2, MOST_ROWS)] = 400
    test_rows: Rows = 100
    seed: Annotated[int, Range(0)] | None = None


@with_settings(ManifoldSettings)
def read(request: Request, settings: ManifoldSettings) -> Parts:
    """Return splits with inputs ``[N, units]`` from 0 to 1; each class is one manifold.

    Every unit is standardised within its class to reach from 0 to 1 over the training rows, so
    that neither place nor size gives a class away, only shape.  Test rows are clipped to that
    range: they have no say in it.

    Raises:
        RecipeError: a setting is not valid, or ``shape`` is not one number.

    Source: F. Zenke and T. P. Vogels, Neural Computation 33:899 (2021).
    """
    request.without_files()
    units, classes = request.units(), request.recipe.classes or CLASSES
    if classes * (settings.train_rows + settings.test_rows) > MOST_ROWS:
        raise RecipeError(f"dataset {request.name}: more than {MOST_ROWS} rows of all classes")
    seed = request.seed if settings.seed is None else settings.seed
    drawn = [_class(settings, units, seed, label) for label in range(classes)]
    train, test = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return Parts({"train": _split(train), "test": _split(test)})


def _class(settings: ManifoldSettings, units: int, seed: int, label: int) -> tuple[Tensor, Tensor]:
    """Return the standardised training and test rows of one class, ``[rows, units]``."""
    stream = generator(seed, "random_manifolds", label)
    theta = manifold(units, settings.dimension, settings.smoothness, stream)
    rows = settings.train_rows + settings.test_rows
    places = torch.rand(rows, settings.dimension, generator=stream, dtype=torch.float64)
    values = evaluate(theta, settings.smoothness, places)
    train = values[: settings.train_rows]
    low, high = train.amin(0), train.amax(0)
    span = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    values = ((values - low) / span).clamp(0, 1)
    return values[: settings.train_rows], values[settings.train_rows :]


def _split(values: Tensor) -> Arrays:
    """Turn ``[rows, classes, units]`` into a split in which the classes take turns."""
    targets = torch.arange(values.shape[1]).repeat(values.shape[0])
    return Arrays(values.flatten(0, 1).float(), targets)


def manifold(units: int, dimension: int, smoothness: float, stream: torch.Generator) -> Tensor:
    """Draw the coefficients of a manifold, uniform from 0 to 1, ``[3, units, D, K]``.

    ``K`` is where the spectrum ``1/k^alpha`` has fallen to a thousandth, at most 1000.
    """
    cutoff = min(math.ceil(PRECISION ** (-1 / smoothness)), MOST_FREQUENCIES)
    shape = (3, units, dimension, cutoff)
    return torch.rand(shape, generator=stream, dtype=torch.float64)


def evaluate(theta: Tensor, smoothness: float, places: Tensor) -> Tensor:
    """Return the units' values ``[rows, units]`` at ``places`` ``[rows, D]`` on a manifold.

    f_i(x) = Π_d Σ_k k^-alpha a_idk sin(2π (k b_idk x_d + c_idk)), with ``theta`` = (a, b, c).
    """
    amplitude, frequency, phase = theta
    k = torch.arange(1, theta.shape[-1] + 1, dtype=theta.dtype)
    units = []
    for a, b, c in zip(amplitude, frequency, phase, strict=True):
        waves = torch.sin(2 * math.pi * (places.unsqueeze(-1) * (k * b) + c))
        units.append((waves * (a * k**-smoothness)).sum(-1).prod(-1))
    return torch.stack(units, 1)
