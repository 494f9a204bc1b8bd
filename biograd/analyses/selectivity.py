"""How activity is spread over stimuli and units: sparseness, tuning, the order of a raster."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.analyses.spike_trains import divided

Array = NDArray[Any]


def sparseness(activity: Array, axis: int) -> Array:
    """Return the sparseness of non-negative activity along an axis; NaN where all is silent.

    ``S = (1 - (sum r / n)^2 / (sum r^2 / n)) / (1 - 1 / n)``, 0: all alike, 1: one alone (Rolls &
    Tovee 1995; Vinje & Gallant 2000).  Of ``[stimulus, unit]``, axis 0 gives that of a unit over
    its life, axis 1 that of the population at a stimulus.
    """
    values = np.asarray(activity, float)
    number = values.shape[axis]
    if number < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    spread = divided(values.mean(axis) ** 2, (values**2).mean(axis))
    return (1 - spread) / (1 - 1 / number)


class TuningCurves(NamedTuple):
    """How the units of a layer respond to the labels.

    Attributes:
        labels: those that there are, ``[label]``.
        mean: activity, ``[label, unit]``.
        error: standard error of the mean, NaN for one trial.
        preferred: label of the largest mean, ``[unit]``; -1: silent.
        selectivity: ``(best - others) / (best + others)``, others: their mean, ``[unit]``.
        explained: share of the variance over trials that is between labels (eta squared).
    """

    labels: Array
    mean: Array
    error: Array
    preferred: Array
    selectivity: Array
    explained: Array


def tuning(activity: Array, labels: Array) -> TuningCurves:
    """Return the tuning of each unit to the labels of the trials.

    Args:
        activity: ``[trial, unit]``.
        labels: ``[trial]``.
    """
    values, known = np.asarray(activity, float), np.unique(labels)
    groups = [values[labels == label] for label in known]
    mean = np.stack([group.mean(0) for group in groups])
    error = np.stack(
        [
            group.std(0, ddof=1) / len(group) ** 0.5
            if len(group) > 1
            else np.full(values.shape[1], np.nan)
            for group in groups
        ]
    )
    best = mean.max(0)
    others = (mean.sum(0) - best) / max(len(known) - 1, 1)
    sizes = np.array([len(group) for group in groups])[:, None]
    between = (sizes * (mean - values.mean(0)) ** 2).sum(0)
    active = np.abs(values).sum(0) > 0
    preferred = np.where(active, known[mean.argmax(0)], -1)
    chosen = divided(best - others, np.abs(best) + np.abs(others))
    explained = divided(between, ((values - values.mean(0)) ** 2).sum(0))
    return TuningCurves(known, mean, error, preferred, chosen, explained)


def raster_order(activity: Array, labels: Array) -> Array:
    """Return the order of the units in a raster: by preferred label, then by how much it is so.

    Silent units are last.  Sort by one half of the trials and show the other, else noise looks
    tuned; see :func:`halves`.
    """
    found = tuning(activity, labels)
    silent = found.preferred == -1
    strength = np.nan_to_num(found.selectivity, nan=-1.0)
    return np.lexsort((-strength, found.preferred, silent))


def halves(labels: Array) -> tuple[Array, Array]:
    """Return two halves of the trials, the labels dealt in turn, as booleans ``[trial]``."""
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        first[np.flatnonzero(labels == label)[::2]] = True
    return first, ~first


def receptive_fields(activity: Array, inputs: Array) -> Array:
    """Return the mean stimulus that each unit responds to, ``[unit, ...]``; NaN: it is silent.

    ``sum_k (r_k - mean r) (x_k - mean x) / (K sd(r))``: the covariance with the input by the unit's
    deviation (reverse correlation).

    Args:
        activity: ``[trial, unit]``.
        inputs: ``[trial, ...]``.
    """
    rest = np.asarray(activity, float) - np.mean(activity, 0)
    seen = np.asarray(inputs, float).reshape(len(inputs), -1)
    found = rest.T @ (seen - seen.mean(0)) / len(rest)
    spread = np.broadcast_to(rest.std(0)[:, None], found.shape)
    return divided(found, spread).reshape(-1, *np.shape(inputs)[1:])
