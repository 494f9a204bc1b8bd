"""What learning does to weights and gradients: spectra, drift, direction, alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses.spike_trains import divided

Array = NDArray[Any]


def matrix(weight: Array) -> Array:
    """Return a weight as ``[output, everything else]``; a vector is one row."""
    values = np.asarray(weight, float)
    return values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)


def spectra(weights: Array) -> Array:
    """Return the singular values of each snapshot of a weight, largest first."""
    return np.stack([np.linalg.svd(matrix(one), compute_uv=False) for one in weights])


def drift(weights: Array) -> dict[str, Array]:
    """Return how far a weight has gone, by snapshot.

    ``distance``: ``|W_s - W_0| / |W_0|``; ``cosine`` with ``W_0``; ``path``: ``sum |W_s - W_(s-1)|
    / |W_0|``, at least the distance; ``direct``: distance by path, 1: straight on.

    Args:
        weights: ``[snapshot, ...]``.
    """
    flat = np.asarray(weights, float).reshape(len(weights), -1)
    size = np.linalg.norm(flat, axis=1)
    begin = np.full(len(flat), size[0])
    far = np.linalg.norm(flat - flat[0], axis=1)
    steps = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    path = np.concatenate(([0.0], np.cumsum(steps)))
    found = {"distance": divided(far, begin), "cosine": divided(flat @ flat[0], size * size[0])}
    return found | {"path": divided(path, begin), "direct": divided(far, path)}


def cosine(first: Array, second: Array) -> float:
    """Return the cosine of two gradients or weights of one shape; NaN: one is 0."""
    one, other = (np.asarray(v, float).ravel() for v in (first, second))
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other / length) if length > 0 else float("nan")


def gradient_quality(estimates: Array, reference: Array) -> dict[str, float]:
    """Return how good estimates of a gradient are.

    ``cosine``: mean of single draws; ``cosine_of_mean``; ``norm_ratio``: mean ``|g^| / |g|``;
    ``sign``: share of equal signs where the gradient is not 0; ``bias2`` and ``variance`` by
    ``|g|^2``, the variance over ``n - 1`` draws and taken out of the squared bias.

    Args:
        estimates: ``[draw, ...]``, two draws or more.
        reference: ``[...]``.
    """
    draws = np.asarray(estimates, float).reshape(len(estimates), -1)
    truth = np.asarray(reference, float).ravel()
    length, mean = float(truth @ truth), draws.mean(0)
    spread = float(((draws - mean) ** 2).sum() / (len(draws) - 1))
    wrong = float(((mean - truth) ** 2).sum()) - spread / len(draws)
    there = truth != 0
    signs = np.sign(draws[:, there]) == np.sign(truth[there])
    norms = np.linalg.norm(draws, axis=1)
    return {
        "cosine": float(np.mean([cosine(draw, truth) for draw in draws])),
        "cosine_of_mean": cosine(mean, truth),
        "norm_ratio": float(norms.mean() / length**0.5) if length else float("nan"),
        "sign": float(signs.mean()) if there.any() else float("nan"),
        "bias2": wrong / length if length else float("nan"),
        "variance": spread / length if length else float("nan"),
    }


def feedback_alignment(weights: Array, feedback: Array) -> Array:
    """Return the cosine of forward weights with the feedback that stands for them, by snapshot.

    Args:
        weights: ``[snapshot, output, input]``.
        feedback: ``[input, output]`` or one for each snapshot; compared transposed.
    """
    fixed = np.asarray(feedback)
    each = fixed if fixed.ndim == 3 else np.broadcast_to(fixed, (len(weights), *fixed.shape))
    return np.array([cosine(w, b.T) for w, b in zip(weights, each, strict=True)])


def histograms(weights: Array, bins: int = 60) -> dict[str, Array]:
    """Return the share of a weight's entries in bins that all snapshots have in common.

    Returns:
        ``edge [bin + 1]`` and ``share [snapshot, bin]``, which sums to 1.
    """
    flat = np.asarray(weights, float).reshape(len(weights), -1)
    edge = np.histogram_bin_edges(flat, bins)
    share = np.stack([np.histogram(one, edge)[0] for one in flat]) / flat.shape[1]
    return {"edge": edge, "share": share}
