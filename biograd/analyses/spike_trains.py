"""Statistics of spikes: rates, intervals, variability of counts, histograms, correlations.

Trials are never joined: an interval that spans two of them is none.  Units without the spikes that
a statistic needs have NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class IntervalSums:
    """Sums over the intervals ``I`` between spikes of a unit in a trial; those of parts add up.

    Attributes:
        intervals: their number ``m``, ``[unit]``.
        mean: of them in ms.
        squares: sum of the squared deviations from it.
        pairs: number of pairs of successive intervals.
        relative: sum of ``2 |I' - I| / (I' + I)``.
        local: sum of ``3 (I' - I)^2 / (I' + I)^2``.
    """

    intervals: Array
    mean: Array
    squares: Array
    pairs: Array
    relative: Array
    local: Array

    @classmethod
    def of(cls, times: Array, units: Array, trials: Array, count: int) -> IntervalSums:
        """Return the sums of some whole trials.

        Args:
            times: in ms, ``[spike]``, in any order.
            units: index of each spike's unit.
            trials: index of each spike's trial.
            count: of the units.
        """
        order = np.lexsort((times, trials, units))
        unit, trial = units[order].astype(np.int64), trials[order]
        gap = np.diff(times[order].astype(np.float64))
        here = (unit[1:] == unit[:-1]) & (trial[1:] == trial[:-1])
        owner, values = unit[1:][here], gap[here]
        number = np.bincount(owner, minlength=count).astype(float)
        mean = np.bincount(owner, values, count) / np.maximum(number, 1)
        squares = np.bincount(owner, (values - mean[owner]) ** 2, count)
        both = here[1:] & here[:-1]
        total = gap[1:][both] + gap[:-1][both]
        share = np.abs(gap[1:][both] - gap[:-1][both]) / np.where(total > 0, total, 1)
        pair = unit[2:][both]
        pairs = np.bincount(pair, minlength=count).astype(float)
        relative, local = (np.bincount(pair, v, count) for v in (2 * share, 3 * share**2))
        return cls(number, mean, squares, pairs, relative, local)

    def __add__(self, other: IntervalSums) -> IntervalSums:
        """Return the sums of both (Chan, Golub & LeVeque 1983)."""
        number = self.intervals + other.intervals
        whole, step = np.maximum(number, 1), other.mean - self.mean
        mean = (self.mean * self.intervals + other.mean * other.intervals) / whole
        between = step**2 * self.intervals * other.intervals / whole
        added = (getattr(self, n) + getattr(other, n) for n in ("pairs", "relative", "local"))
        return IntervalSums(number, mean, self.squares + other.squares + between, *added)

    @property
    def statistics(self) -> dict[str, Array]:
        """Of each unit, ``[unit]``: ``isi`` in ms, ``cv``, ``cv2`` and ``lv``.

        ``CV = sd(I) / mean(I)`` with the deviation over ``m``; ``CV2 = mean 2 |I' - I| / (I' + I)``
        (Holt et al. 1996); ``LV = mean 3 (I' - I)^2 / (I' + I)^2`` (Shinomoto et al. 2003).
        """
        mean = divided(self.mean * self.intervals, self.intervals)
        spread = np.sqrt(divided(self.squares, self.intervals))
        cv2, lv = divided(self.relative, self.pairs), divided(self.local, self.pairs)
        return {"isi": mean, "cv": divided(spread, mean), "cv2": cv2, "lv": lv}


def divided(above: Array, below: Array) -> Array:
    """Return ``above / below``, NaN where ``below`` is 0 or unknown."""
    known = np.nan_to_num(below) != 0
    return np.where(known, above / np.where(known, below, 1), np.nan)


def intervals(times: Array, units: Array, trials: Array, count: int) -> dict[str, Array]:
    """Return ``isi``, ``cv``, ``cv2`` and ``lv`` of each unit; see :class:`IntervalSums`."""
    return IntervalSums.of(times, units, trials, count).statistics


def counts(units: Array, trials: Array, shape: tuple[int, int]) -> Array:
    """Return the spikes of each trial and unit, int64 ``[trial, unit]``."""
    flat = trials.astype(np.int64) * shape[1] + units.astype(np.int64)
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)


def rates(counted: Array, seconds: float) -> Array:
    """Return mean rates in Hz, ``sum_k n_k / (K T)``, of counts ``[..., trial, unit]``."""
    return np.asarray(counted, float).mean(-2) / seconds


def silence(counted: Array) -> Array:
    """Return the share of the units that no trial made fire, of counts ``[..., trial, unit]``."""
    return (np.asarray(counted) == 0).all(-2).mean(-1)


def fano(counted: Array, labels: Array | None = None) -> Array:
    """Return the Fano factor of each unit: variance of the counts by their mean.

    Args:
        counted: ``[trial, unit]``.
        labels: of the trials; given, the factor is that of each label, averaged over those where
            the unit fires, so that tuning is not taken for variability.
    """
    if labels is None:
        return divided(counted.var(0), counted.mean(0))
    each = np.stack([fano(counted[labels == one]) for one in np.unique(labels)])
    known = np.isfinite(each)
    return divided(np.where(known, each, 0).sum(0), known.sum(0))


def psth(
    times: Array,
    units: Array,
    labels: Array,
    shape: tuple[int, int],
    *,
    trials: Array,
    duration_ms: float,
    bin_ms: float = 1.0,
) -> Array:
    """Return rates after the onset of the stimulus in Hz, ``[label, unit, bin]``.

    ``r = spikes / (trials of the label x bin)``; the last bin may be shorter and is divided by its
    own length.

    Args:
        times: since the begin of the trial, ms, ``[spike]``.
        units: index of each spike's unit.
        labels: index of the label of each spike's trial.
        shape: number of labels and of units.
        trials: number of trials of each label.
        duration_ms: of a trial.
    """
    number = max(1, int(np.ceil(round(duration_ms / bin_ms, 9))))
    place = np.minimum((np.round(times / bin_ms, 9)).astype(np.int64), number - 1)
    flat = (labels.astype(np.int64) * shape[1] + units.astype(np.int64)) * number + place
    found = np.bincount(flat, minlength=shape[0] * shape[1] * number)
    width = np.full(number, bin_ms)
    width[-1] = duration_ms - bin_ms * (number - 1)
    return found.reshape(*shape, number) / np.maximum(trials, 1)[:, None, None] / width * 1000


def correlations(values: Array) -> Array:
    """Return Pearson's correlation of every pair of units, ``[unit, unit]``; NaN: it is constant.

    Args:
        values: counts or activity, ``[bin or trial, unit]``.
    """
    deviation = np.asarray(values, float) - np.mean(values, 0)
    length = np.sqrt((deviation**2).sum(0))
    scaled = divided(deviation, np.broadcast_to(length, deviation.shape))
    return np.clip(scaled.T @ scaled, -1, 1)


def noise_correlations(values: Array, labels: Array) -> Array:
    """Return the correlations of what is left when each label's mean is taken away."""
    rest = np.array(values, float)
    for label in np.unique(labels):
        rest[labels == label] -= rest[labels == label].mean(0)
    return correlations(rest)
