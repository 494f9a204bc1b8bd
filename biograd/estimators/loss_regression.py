"""Gradients from losses under noise: the formulas of the weak-gradient family.

Every function takes losses ``[S, B]`` (copy 0 clean) and directions ``u [m, B, D]`` in units of
the perturbation's size, and returns ``dL/du [B, D]`` for every example on its own.  Dividing by
the size ``sigma`` of the perturbation of each unit gives the gradient.

Notation: ``dL_s = L_s - L_0``, ``m = S - 1`` noisy copies.

In the mean over directions the error of every method but one is of second order in ``sigma`` (noise
and its opposite are as likely); of ``finite_difference``, whose offsets have one sign, of first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from biograd.errors import RecipeError
from biograd.registry import Registry

Regression = Callable[[Tensor, Tensor, float], Tensor]
Directions = Callable[[tuple[int, int, int], torch.Generator, torch.dtype], Tensor]


# Directions -------------------------------------------------------------------------------------


def isotropic(shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return independent standard normal directions ``[m, B, D]``."""
    return torch.randn(shape, generator=stream, dtype=dtype, device=stream.device)


def pairs(shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return normal directions in opposite pairs ``u_0, -u_0, u_1, -u_1, ...``.

    Raises:
        RecipeError: the number of noisy copies is odd.
    """
    copies, batch, size = shape
    _need(copies % 2 == 0, f"antithetic pairs need an odd number of copies, not {copies + 1}")
    half = isotropic((copies // 2, batch, size), stream, dtype)
    return torch.stack((half, -half), 1).flatten(0, 1)


def coordinates(shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return ``m`` different unit vectors, drawn anew for each example; all of them if m = D.

    Raises:
        RecipeError: more noisy copies than coordinates.
    """
    copies, batch, size = shape
    _need(copies <= size, f"finite differences use at most {size + 1} copies, not {copies + 1}")
    keys = torch.rand(batch, size, generator=stream, device=stream.device)
    chosen = keys.argsort(1)[:, :copies]
    return torch.nn.functional.one_hot(chosen, size).transpose(0, 1).to(dtype)


def coordinate_pairs(
    shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Return ``m / 2`` different unit vectors, each followed by its opposite.

    Raises:
        RecipeError: the number of noisy copies is odd, or more than two for each coordinate.
    """
    copies, batch, size = shape
    _need(copies % 2 == 0, f"central differences need an odd number of copies, not {copies + 1}")
    half = coordinates((copies // 2, batch, size), stream, dtype)
    return torch.stack((half, -half), 1).flatten(0, 1)


def orthonormal(shape: tuple[int, int, int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return ``m`` orthonormal directions for each example, uniformly distributed.

    Raises:
        RecipeError: more noisy copies than dimensions.
    """
    copies, batch, size = shape
    _need(
        copies <= size,
        f"orthogonal directions allow at most {size + 1} copies here, not {copies + 1}",
    )
    normal = torch.randn(batch, size, copies, generator=stream, dtype=dtype, device=stream.device)
    basis, triangle = torch.linalg.qr(normal)
    sign = torch.diagonal(triangle, dim1=-2, dim2=-1).sign()
    return (basis * sign[:, None]).permute(2, 0, 1).contiguous()


# Regressions ------------------------------------------------------------------------------------


def score(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return the score function ``(1/m) sum L_s u_s``; its variance grows with ``L_0^2``."""
    return torch.einsum("mb,mbd->bd", losses[1:], directions) / len(directions)


def baseline(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``(1/m) sum (L_s - L_0) u_s``: node perturbation."""
    return torch.einsum("mb,mbd->bd", losses[1:] - losses[:1], directions) / len(directions)


def leave_one_out(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``(1/(m-1)) sum (L_s - mean L) u_s``: the baseline is the other copies' mean."""
    _need(len(directions) > 1, "leave_one_out needs at least 3 copies")
    centred = losses[1:] - losses[1:].mean(0)
    return torch.einsum("mb,mbd->bd", centred, directions) / (len(directions) - 1)


def antithetic(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``(1/n) sum (L(+u) - L(-u))/2 u`` over ``n = m/2`` pairs."""
    half = (losses[1::2] - losses[2::2]) / 2
    return torch.einsum("nb,nbd->bd", half, directions[::2]) / len(half)


def projection(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``sum (L_s - L_0) q_s`` over orthonormal ``q``: the gradient's part in their span."""
    return torch.einsum("mb,mbd->bd", losses[1:] - losses[:1], directions)


def central_projection(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``sum (L(+q) - L(-q))/2 q`` over pairs of orthonormal ``q``.

    Its error is of second order in sigma.
    """
    half = (losses[1::2] - losses[2::2]) / 2
    return torch.einsum("nb,nbd->bd", half, directions[::2])


def least_squares(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return the least-squares slope with intercept; of least norm if ``m <= D``.

    Its error peaks at ``m = D``: take ``ridge`` unless the losses are exact and linear.
    """
    difference, matrix = _centred(losses, directions)
    # the pseudo-inverse is taken in double precision: near m = D the system is ill-conditioned
    solution = torch.linalg.pinv(matrix.double()) @ difference.double().unsqueeze(-1)
    return solution.squeeze(-1).to(directions.dtype)


def anchored(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return the least-squares slope of ``L_s - L_0`` through the clean loss, no intercept."""
    matrix = directions.transpose(0, 1).double()
    difference = (losses[1:] - losses[:1]).transpose(0, 1).double()
    return (torch.linalg.pinv(matrix) @ difference.unsqueeze(-1)).squeeze(-1).to(directions.dtype)


def ridge_regression(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return the ridge slope with intercept, ``E'(EE' + lambda I)^-1 dL``, per example.

    ``lambda = ridge D``: ``ridge`` is the variance of what is not linear in the losses, relative
    to what is (the Bayes optimum for a Gaussian gradient of unknown direction).  The smaller of
    the two equivalent systems, m x m or D x D, is solved.
    """
    if len(losses) <= directions.shape[2]:
        weights = _ridge_weights(losses[..., None], directions, ridge)
        return torch.einsum("mbk,mbu->bu", weights, directions)
    difference, matrix = _centred(losses, directions)
    covariance = matrix.mT @ matrix
    _add_to_diagonal(covariance, ridge * directions.shape[2])
    return _solve(covariance, matrix.mT @ difference.unsqueeze(-1)).squeeze(-1)


def quadratic(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return the slope of a regression on ``[1, u, u^2]``: diagonal curvature drops out.

    Raises:
        RecipeError: fewer than 2 D + 1 noisy copies.
    """
    copies, _, size = directions.shape
    _need(
        copies >= 2 * size + 1,
        f"quadratic needs at least {2 * size + 2} copies for {size} units, not {copies + 1}",
    )
    both = torch.cat((directions, directions.square()), -1)
    return least_squares(losses, both, ridge)[:, :size]


def rank(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return ``(1/m) sum r_s u_s`` with centred ranks ``r`` in [-1/2, 1/2] in place of losses.

    Free of the losses' scale and robust to outliers; equal losses share their mean rank.
    """
    ranks = centred_ranks(losses[1:]).to(directions.dtype)
    return torch.einsum("mb,mbd->bd", ranks, directions) / len(directions)


def binned(
    method: str, losses: Tensor, directions: Tensor, first: int, size: int, ridge: float
) -> Tensor:
    """Return the slopes of a site whose bins have losses of their own, ``[B, K U]``.

    Args:
        losses: that the noise of each bin can act on, ``[S, B, K]``.
        directions: at all sites, ``[m, B, D]``; earlier noise moves later losses, too.
        first: the site's first direction.
        size: ``K U``, the number of its directions, bin by bin.
    """
    _, regression = METHODS[method]
    units = size // losses.shape[2]
    places = [slice(first + k * units, first + (k + 1) * units) for k in range(losses.shape[2])]
    if method == "ridge":
        own = directions[..., first : first + size].unflatten(2, (-1, units))
        return torch.einsum(
            "mbk,mbku->bku", _ridge_weights(losses, directions, ridge), own
        ).flatten(1)
    found = []
    for part, place in zip(losses.unbind(2), places, strict=True):
        if method in JOINT:
            found.append(regression(part, directions, ridge)[:, place])
        else:
            found.append(regression(part, directions[..., place], ridge))
    return torch.cat(found, 1)


def _ridge_weights(losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return what weighs each copy's directions in the ridge slope, ``[m, B, K]``."""
    difference = (losses - losses[:1]).transpose(0, 1).to(directions.dtype)  # [B, S, K]
    rows = directions.transpose(0, 1)  # as they lie: what is centred is their products
    kernel = functional.pad(rows @ rows.mT, (1, 0, 1, 0))  # the clean copy's is 0
    kernel = kernel - kernel.mean(1, keepdim=True)
    kernel = kernel - kernel.mean(2, keepdim=True)
    _add_to_diagonal(kernel, ridge * directions.shape[2])
    weights = _solve(kernel, difference - difference.mean(1, keepdim=True))
    return (weights - weights.mean(1, keepdim=True))[:, 1:].transpose(0, 1)


def copy_weights(method: str, losses: Tensor, directions: Tensor, ridge: float) -> Tensor:
    """Return what weighs each copy's own directions in the slope, ``[m, B, K]``.

    Args:
        losses: that the noise of each bin can act on, ``[S, B, K]``.
        directions: at all sites, ``[m, B, D]``.
    """
    noisy, count = losses[1:], len(directions)
    if method == "ridge":
        return _ridge_weights(losses, directions, ridge)
    if method == "antithetic":
        # the opposite copy may not serve as a baseline: its losses depend on the same noise
        pair = (noisy[0::2] + noisy[1::2]).repeat_interleave(2, 0)
        others = (noisy.sum(0) - pair) / (count - 2) if count > 2 else torch.zeros_like(noisy)
        return (noisy - others) / count
    if method == "leave_one_out":
        _need(count > 1, "leave_one_out needs at least 3 copies")
        return (noisy - noisy.mean(0)) / (count - 1)
    if method == "rank":
        return centred_ranks(noisy) / count
    return (noisy if method == "score" else noisy - losses[:1]) / count


def centred_ranks(values: Tensor) -> Tensor:
    """Return the ranks along the first axis, in [-1/2, 1/2]; equal values share their mean rank.

    >>> centred_ranks(torch.tensor([3.0, 1.0, 7.0, 3.0])).tolist()
    [0.0, -0.5, 0.5, 0.0]
    """
    below = (values[:, None] > values[None]).sum(1)
    equal = (values[:, None] == values[None]).sum(1)
    return (below + (equal - 1) / 2).to(values.dtype) / max(len(values) - 1, 1) - 0.5


def _centred(losses: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses ``[B, S]`` and directions ``[B, S, D]`` (the clean copy's is 0), centred."""
    difference = (losses - losses[:1]).transpose(0, 1).to(directions.dtype)
    matrix = torch.cat((torch.zeros_like(directions[:1]), directions)).transpose(0, 1)
    return difference - difference.mean(1, keepdim=True), matrix - matrix.mean(1, keepdim=True)


def _add_to_diagonal(matrix: Tensor, value: float) -> None:
    matrix.diagonal(dim1=-2, dim2=-1).add_(value)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        return torch.linalg.lstsq(
            matrix.double().cpu(), right.double().cpu(), driver="gelsd"
        ).solution.to(right)
    return torch.cholesky_solve(right, factor)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(f"estimator: {message}")


METHODS: Registry[tuple[Directions, Regression]] = Registry(
    "biograd.weak_methods",
    {
        "score": (isotropic, score),
        "baseline": (isotropic, baseline),
        "leave_one_out": (isotropic, leave_one_out),
        "antithetic": (pairs, antithetic),
        "finite_difference": (coordinates, projection),
        "central_difference": (coordinate_pairs, central_projection),
        "orthogonal": (orthonormal, projection),
        "least_squares": (isotropic, least_squares),
        "anchored": (isotropic, anchored),
        "ridge": (isotropic, ridge_regression),
        "quadratic": (isotropic, quadratic),
        "rank": (isotropic, rank),
    },
)
"""Name of a method to how its directions are drawn and how a gradient follows from them."""
BY_COPY = frozenset(("score", "baseline", "leave_one_out", "antithetic", "ridge", "rank"))
"""Methods whose slope is a sum of the copies' directions, each weighed by what ``copy_weights``
says, and that so go with inputs of the copies' own."""
JOINT = frozenset(("least_squares", "anchored", "quadratic"))
"""Methods in which the slope of one direction depends on the others."""
