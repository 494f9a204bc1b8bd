"""What a network answers: confusions, accuracy of a class, and how sure it is rightly."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def confusion(labels: Array, answers: Array, classes: int) -> Array:
    """Return how often each class was answered by each, int64 ``[class, answer]``."""
    flat = np.asarray(labels, np.int64) * classes + np.asarray(answers, np.int64)
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def wilson(right: Array | int, number: Array | int) -> tuple[Array, Array]:
    """Return Wilson's 95 % interval of a share: ``right`` of ``number`` (Wilson 1927).

    >>> low, high = wilson(352, 360)
    >>> round(float(low), 3), round(float(high), 3)
    (0.957, 0.989)
    """
    from scipy.stats import norm

    z, n = norm.ppf(0.975), np.maximum(np.asarray(number, float), 1e-300)
    share = np.asarray(right, float) / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1)


class Calibration(NamedTuple):
    """How often a network is right, by how sure it says it is.

    Attributes:
        edge: of the bins of confidence, ``[bin + 1]``.
        number: of answers in each, ``[bin]``.
        confidence: mean of the largest probability, NaN in an empty bin.
        accuracy: share of right answers, likewise.
        error: ``sum number |accuracy - confidence| / N``, the expected calibration error (Naeini,
            Cooper & Hauskrecht 2015).
    """

    edge: Array
    number: Array
    confidence: Array
    accuracy: Array
    error: float


def calibration(outputs: Array, labels: Array, bins: int = 10) -> Calibration:
    """Return the calibration of outputs, taken as logarithms of odds (softmax).

    Args:
        outputs: ``[example, class]``.
        labels: ``[example]``.
    """
    from scipy.special import softmax

    from biograd.analyses.spike_trains import divided

    probability = softmax(np.asarray(outputs, float), axis=1)
    sure, right = probability.max(1), probability.argmax(1) == labels
    edge = np.linspace(0, 1, bins + 1)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    said, was = (divided(np.bincount(place, v, bins), number) for v in (sure, right))
    gap = np.nansum(number * np.abs(was - said)) / max(len(sure), 1)
    return Calibration(edge, number, said, was, float(gap))
