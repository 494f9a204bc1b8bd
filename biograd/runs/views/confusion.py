"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biograd.errors import RunFileError
from biograd.runs.layout import Array


class Confusion(NamedTuple):
    """Counts of stimuli by their class and by the answer.

    Attributes:
        counts: int64 ``[class, answer]``.
        classes: their names.
    """

    counts: Array
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.trace(self.counts) / max(1, self.counts.sum()))


def confusion(outputs: Array, labels: Array, classes: Sequence[str]) -> Confusion:
    """Return the confusion of outputs ``[probe, class]``, whose largest is the answer.

    Outputs of every step, ``[probe, time, class]``, are averaged over time.

    Raises:
        RunFileError: outputs or labels are not those of the classes.
    """
    mean = outputs.mean(1) if outputs.ndim == 3 else outputs
    size = len(classes)
    if mean.shape != (len(labels), size) or (labels < 0).any() or (labels >= size).any():
        raise RunFileError(f"outputs {outputs.shape} are not those of {size} classes")
    if np.isnan(mean).any():
        raise RunFileError("the outputs of this snapshot were not recorded, or are not numbers")
    flat = labels.astype(np.int64) * size + mean.argmax(1)
    counts = np.bincount(flat, minlength=size * size).reshape(size, size)
    return Confusion(counts, tuple(classes))
