"""How near a network comes to recorded data: dissimilarities, spike trains, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.analyses.dissimilarity import NoiseCeiling, noise_ceiling, rdm, rsa
from biograd.errors import RecipeError
from biograd.runs.views.converters import library

Array = NDArray[Any]


class RecordedSimilarity(NamedTuple):
    """Similarity of a layer's dissimilarities with those of recordings, and what is reachable.

    Attributes:
        each: with every recording, ``[recording]``.
        ceiling: None for a single recording.
    """

    each: Array
    ceiling: NoiseCeiling | None


def compare_rdms(activity: Array, recorded: Array, method: str = "spearman") -> RecordedSimilarity:
    """Return how alike a layer and recordings are.

    Args:
        activity: of the layer, ``[stimulus, unit]``.
        recorded: dissimilarities of recordings of the same stimuli, ``[recording, stimulus,
            stimulus]``.
    """
    model = rdm(activity)
    each = np.array([rsa(model, one, method) for one in recorded])
    pooled = "pearson" if method == "tau-a" else method
    ceiling = noise_ceiling(recorded, pooled) if len(recorded) > 1 and method != "tau-a" else None
    return RecordedSimilarity(each, ceiling)


def van_rossum(trains: Sequence[Array], tau_ms: float, duration_ms: float) -> Array:
    """Return the van Rossum distance of every pair of trains, ``[train, train]`` (Elephant).

    Each spike becomes an exponential of time constant ``tau``; the distance is that of the sums
    (van Rossum 2001), 1 for one spike that the other train lacks.

    Args:
        trains: times in ms.
        duration_ms: of the trial.

    Raises:
        MissingExtraError: Elephant is not installed.
        RecipeError: a time lies outside of the trial.
    """
    measures = library("elephant.spike_train_dissimilarity", "analysis")
    found = measures.van_rossum_distance(_trains(trains, duration_ms), tau_ms * _ms(), sort=True)
    return np.asarray(found, float)


def _ms() -> Any:
    return library("quantities", "analysis").ms


def _trains(trains: Sequence[Array], duration_ms: float) -> list[Any]:
    neo = library("neo", "analysis")
    for train in trains:
        if len(train) and not 0 <= np.min(train) <= np.max(train) <= duration_ms:
            raise RecipeError(f"a spike lies outside of 0 to {duration_ms:g} ms")
    return [neo.SpikeTrain(np.sort(t), units="ms", t_stop=duration_ms) for t in trains]


def psth_r2(model: Array, recorded: Array) -> Array:
    """Return the share of a recorded histogram's variance that the model's has, ``[...]``.

    ``1 - sum (r - m)^2 / sum (r - mean r)^2`` over the last axis; NaN: the recording is constant.
    """
    truth = np.asarray(recorded, float)
    rest = ((truth - np.asarray(model, float)) ** 2).sum(-1)
    whole = ((truth - truth.mean(-1, keepdims=True)) ** 2).sum(-1)
    return np.where(whole > 0, 1 - rest / np.where(whole > 0, whole, 1), np.nan)
