"""Representational dissimilarity: matrices, their comparison, the ceiling that noise sets.

Source: Kriegeskorte, Mur & Bandettini 2008; Nili et al. 2014; Walther et al. 2016.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.errors import RecipeError, nearest
from biograd.runs.views.converters import library

Array = NDArray[Any]
Distance = Literal["correlation", "cosine", "euclidean"]
DISTANCES = ("correlation", "cosine", "euclidean")
METHODS = ("spearman", "pearson", "cosine", "tau-a")


def rdm(activity: Array, distance: str = "correlation") -> Array:
    """Return the dissimilarity of every pair of stimuli, ``[stimulus, stimulus]``.

    ``correlation``: ``1 - r``, ``cosine``: ``1 - cos``, both NaN where a stimulus leaves the layer
    constant or silent; ``euclidean``: the length of the difference.

    Args:
        activity: ``[stimulus, unit]``.

    Raises:
        RecipeError: there is no such distance.
    """
    if distance not in DISTANCES:
        raise RecipeError(f"distance = {distance!r}: {nearest(distance, DISTANCES)}")
    values = np.asarray(activity, float)
    if distance == "euclidean":
        from scipy.spatial.distance import pdist, squareform

        return squareform(pdist(values))
    if distance == "correlation":
        values = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    scale = np.abs(np.asarray(activity, float)).max(1, keepdims=True)
    known = length > 1e-12 * np.maximum(scale, 1e-300)  # rounding is no pattern
    unit = np.where(known, values / np.where(known, length, 1), np.nan)
    found = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(found, np.where(known[:, 0], 0.0, np.nan))
    return found


def label_rdm(labels: Array) -> Array:
    """Return the matrix of a perfect code for labels: 0 for the same, 1 for another."""
    return (np.asarray(labels)[:, None] != np.asarray(labels)[None]).astype(float)


def upper(matrix: Array) -> Array:
    """Return the entries above the diagonal, ``[..., pair]``."""
    rows, columns = np.triu_indices(matrix.shape[-1], 1)
    return matrix[..., rows, columns]


def rsa(first: Array, second: Array, method: str = "spearman") -> float:
    """Return how alike two matrices are; pairs that either does not define are left out.

    ``spearman``, ``pearson``: correlation of (the ranks of) the upper triangles; ``cosine``: of
    them uncentred; ``tau-a``: ``(concordant - discordant) / pairs``, which does not favour ties.

    Raises:
        RecipeError: there is no such method, or the matrices differ in size.
    """
    if method not in METHODS:
        raise RecipeError(f"method = {method!r}: {nearest(method, METHODS)}")
    if first.shape != second.shape:
        raise RecipeError(f"matrices of {first.shape} and {second.shape}: the stimuli must agree")
    one, other = upper(first), upper(second)
    known = np.isfinite(one) & np.isfinite(other)
    return _similar(one[known], other[known], method)


def _similar(one: Array, other: Array, method: str) -> float:
    if len(one) < 2:
        return float("nan")
    if method == "tau-a":
        return _tau_a(one, other)
    if method == "spearman":
        from scipy.stats import rankdata

        one, other = rankdata(one), rankdata(other)
    if method != "cosine":
        one, other = one - one.mean(), other - other.mean()
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other / length) if length > 0 else float("nan")


def _tau_a(one: Array, other: Array) -> float:
    """Return Kendall's tau-a from tau-b: the same numerator, by all pairs in place of untied."""
    from scipy.stats import kendalltau

    def untied(values: Array) -> float:
        _, sizes = np.unique(values, return_counts=True)
        return float(len(values) * (len(values) - 1) / 2 - (sizes * (sizes - 1) / 2).sum())

    pairs = len(one) * (len(one) - 1) / 2
    if not untied(one) or not untied(other):
        return 0.0
    return float(kendalltau(one, other).statistic * (untied(one) * untied(other)) ** 0.5 / pairs)


class NoiseCeiling(NamedTuple):
    """What the best model could reach: each seed's or subject's matrix with the mean of others."""

    lower: float
    upper: float


def noise_ceiling(matrices: Array, method: str = "pearson") -> NoiseCeiling:
    """Return the noise ceiling of several matrices of the same stimuli.

    Each matrix is standardised as the method does (ranks, mean 0, length 1). ``upper``: mean
    similarity of each with the mean of all; ``lower``: with the mean of the others.

    Args:
        matrices: ``[seed, stimulus, stimulus]``, at least two.

    Raises:
        RecipeError: there are fewer, or the method has no mean (tau-a).
    """
    if len(matrices) < 2:
        raise RecipeError("a noise ceiling needs matrices of two seeds or more")
    if method not in METHODS[:3]:
        raise RecipeError(f"method = {method!r}: {nearest(method, METHODS[:3])}")
    values = upper(np.asarray(matrices, float))
    values = values[:, np.isfinite(values).all(0)]
    scaled = np.stack([_standard(row, method) for row in values])
    total = scaled.sum(0)
    both = list(zip(values, scaled, strict=True))
    below = [_similar(value, total - row, method) for value, row in both]
    above = [_similar(value, total, method) for value, _ in both]
    return NoiseCeiling(float(np.mean(below)), float(np.mean(above)))


def _standard(row: Array, method: str) -> Array:
    if method == "spearman":
        from scipy.stats import rankdata

        return np.asarray(rankdata(row))  # sums of ranks have ties, which scaling would break
    if method != "cosine":
        row = row - row.mean()
    length = np.linalg.norm(row)
    return row / length if length > 0 else row


def crossnobis(activity: Array, labels: Array, folds: Array) -> Array:
    """Return the cross-validated Mahalanobis distance of every pair of labels (rsatoolbox).

    Its expectation is 0 where two labels do not differ; the noise is whitened by the diagonal of
    its covariance.

    Args:
        activity: ``[trial, unit]``.
        folds: of the trials; every fold has every label.

    Raises:
        MissingExtraError: rsatoolbox is not installed.
    """
    rsatoolbox = library("rsatoolbox", "analysis")
    about = {"label": np.asarray(labels, float), "fold": np.asarray(folds, float)}
    data = rsatoolbox.data.Dataset(np.asarray(activity, float), obs_descriptors=about)
    noise = rsatoolbox.data.noise.prec_from_measurements(data, "label", method="diag")
    found = rsatoolbox.rdm.calc_rdm_crossnobis(data, "label", noise=noise, cv_descriptor="fold")
    return found.get_matrices()[0]
