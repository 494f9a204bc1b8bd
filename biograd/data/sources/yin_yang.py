"""The Yin-Yang dataset: three classes in a disc, which no linear boundary can tell apart."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np
import torch

from biograd.checking import Checked
from biograd.data.request import Parts, Request, Rows, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.recipes import Range

RADIUS = 0.5
DOT = 0.1
YIN, YANG, DOTS = 0, 1, 2
Seed = Annotated[int, Range(0, 2**32 - 1)]


@dataclasses.dataclass(frozen=True)
class YinYangSettings(Checked):
    """Sizes and seeds; the defaults give the published training and test splits.

    Seed 41 with 1,000 rows gives the published validation split.
    """

    train_rows: Rows = 5000
    train_seed: Seed = 42
    test_rows: Rows = 1000
    test_seed: Seed = 40


@with_settings(YinYangSettings)
def read(request: Request, settings: YinYangSettings) -> Parts:
    """Return splits with inputs ``[N, 4]``: ``x, y, 1 - x, 1 - y``, each from 0 to 1.

    Source: L. Kriener, J. Göltz and M. A. Petrovici, The Yin-Yang dataset, NICE (2022).
    """
    request.without_files()
    train = sample(settings.train_rows, settings.train_seed)
    test = sample(settings.test_rows, settings.test_seed)
    return Parts({"train": _split(*train), "test": _split(*test)})


def _split(inputs: np.ndarray, targets: np.ndarray) -> Arrays:
    return Arrays(torch.from_numpy(inputs).float(), torch.from_numpy(targets))


def sample(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 inputs ``[rows, 4]`` and int64 targets ``[rows]``.

    A class is drawn first, then points in the enclosing square until one lies in that class.
    Why NumPy's old generator: the published files were drawn with it, and a point at a time is
    the only order that gives them bit for bit.
    """
    stream = np.random.RandomState(seed)
    inputs, targets = np.empty((rows, 4)), np.empty(rows, dtype=np.int64)
    for row in range(rows):
        targets[row] = stream.randint(3)
        x, y = stream.random_sample(2).tolist()
        while classify(x, y) != targets[row]:
            x, y = stream.random_sample(2).tolist()
        inputs[row] = x, y, 1 - x, 1 - y
    return inputs, targets


def classify(x: float, y: float) -> int | None:
    """Return the class of a point of the unit square, None outside the disc.

    The disc has radius 1/2. Two dots of radius 1/10 lie in the middles of its left and right
    half. Yang is the upper half-disc without the right half-circle around the right dot, and the
    left half-circle around the left dot; yin is the rest.
    """
    if math.hypot(x - RADIUS, y - RADIUS) > RADIUS:
        return None
    left = math.hypot(x - RADIUS / 2, y - RADIUS)
    right = math.hypot(x - 3 * RADIUS / 2, y - RADIUS)
    if left < DOT or right < DOT:
        return DOTS
    if left <= RADIUS / 2:
        return YANG
    return YANG if y > RADIUS and right > RADIUS / 2 else YIN
