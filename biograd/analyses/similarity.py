"""How alike two representations are, and how many dimensions one has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.errors import RecipeError

Array = NDArray[Any]


def _pair(first: Array, second: Array) -> tuple[Array, Array]:
    if len(first) != len(second):
        raise RecipeError(f"{len(first)} and {len(second)} stimuli: both need the same")
    return tuple(np.asarray(v, float).reshape(len(v), -1) for v in (first, second))  # type: ignore[return-value]


def cka(first: Array, second: Array, debiased: bool = True) -> float:
    """Return the linear centred kernel alignment of two representations; NaN: one is constant.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = X X'`` (Kornblith et al. 2019); debiased
    by the unbiased estimate of HSIC (Song et al. 2007), which is near 0 for independent
    representations of however many units, where the biased one is near 1.

    Args:
        first: ``[stimulus, unit]``.
        second: the same stimuli, other units.

    Raises:
        RecipeError: the numbers of stimuli differ, or are below 4 for the debiased estimate.
    """
    one, other = _pair(first, second)
    if debiased and len(one) < 4:
        raise RecipeError(f"{len(one)} stimuli: debiased CKA needs 4 or more")
    kernels = [v @ v.T for v in (one - one.mean(0), other - other.mean(0))]
    made = [(_u_centred if debiased else _centred)(kernel) for kernel in kernels]
    cross = float((made[0] * made[1]).sum())
    own = [float((kernel**2).sum()) for kernel in made]
    tiny = [1e-24 * float((kernel**2).sum()) for kernel in kernels]
    if any(value <= least for value, least in zip(own, tiny, strict=True)):
        return float("nan")
    return cross / (own[0] * own[1]) ** 0.5


def _centred(kernel: Array) -> Array:
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def _u_centred(kernel: Array) -> Array:
    """Return the kernel whose products are unbiased: diagonal left out, sums of rows are 0."""
    number = len(kernel)
    bare = kernel - np.diag(np.diag(kernel))
    rows = bare.sum(0) / (number - 2)
    found = bare - rows - rows[:, None] + bare.sum() / ((number - 1) * (number - 2))
    np.fill_diagonal(found, 0)
    return found


def procrustes(first: Array, second: Array) -> float:
    """Return the orthogonal Procrustes distance of two representations, from 0 to 1.

    ``1 - |X' Y|_*^2`` with the nuclear norm, for both centred and of length 1: what is left of the
    second when the first is rotated, mirrored and scaled onto it.  Units need not be as many.
    """
    made = []
    for values in _pair(first, second):
        centred = values - values.mean(0)
        length = np.linalg.norm(centred)
        if length == 0:
            return float("nan")
        made.append(centred / length)
    nuclear = np.linalg.svd(made[0].T @ made[1], compute_uv=False).sum()
    return float(max(0.0, 1 - nuclear**2))


def spectrum(activity: Array) -> Array:
    """Return the variances along the principal components, largest first, ``[component]``."""
    values = np.asarray(activity, float)
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    return singular**2 / max(len(values) - 1, 1)


def participation_ratio(activity: Array) -> float:
    """Return the number of dimensions ``(sum v)^2 / sum v^2`` for variances ``v``.

    It grows with the number of stimuli: compare it for equal numbers alone.
    """
    found = spectrum(activity)
    return float(found.sum() ** 2 / (found**2).sum()) if found.any() else float("nan")


def effective_rank(matrix: Array) -> float:
    """Return ``exp(-sum p log p)`` for the shares ``p`` of the singular values.

    Source: Roy & Vetterli 2007.
    """
    singular = np.linalg.svd(np.asarray(matrix, float), compute_uv=False)
    if not singular.any():
        return float("nan")
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
