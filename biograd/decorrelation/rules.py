"""How a decorrelating matrix ``R`` learns from what it receives, ``x``, and returns, ``x' = R x``.

With ``C = <x' x'^T>`` over the rows and rate ``eta``:

=========  =====================================================================================
kappa      ``R <- R - eta [(1 - kappa) (C - diag C) R + kappa diag(<x'^2> - 1) R]``: kappa = 0
           decorrelates, 1 sets unit variance, between whitens (Dalm et al. 2024, arXiv 2405.02385)
copi       ``R <- R - eta (C - diag C) R``: decorrelates (Ahmad et al. 2023; arXiv 2407.10780)
scaled     ``R <- g R`` with ``g = <|x| / |x'|>``, then ``R <- R - eta C R`` over
           the rows that are not zero (Ahmad 2024, arXiv 2407.10780, as its code was first released;
           a later release takes the batch's mean from ``x`` and multiplies ``R C``)
foldiak    ``M <- M + eta (C - diag C)`` with ``R = M^-1``: lateral inhibition ``x' = x - (M - I)
           x'`` at its equilibrium; ``R`` stays symmetric (Foldiak 1989; arXiv 2407.10780)
=========  =====================================================================================

To add a rule: write a function and name it in ``RULES``; it may change ``R`` in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from biograd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Moments:
    """What a rule learns from: the rows ``x`` and ``x' = R x`` of one layer, and its ``R``.

    Attributes:
        rows: ``[n, d]``.
        outputs: ``[n, d]``.
        matrix: ``[d, d]``.
        kappa: between decorrelation (0) and unit variance (1).
    """

    rows: Tensor
    outputs: Tensor
    matrix: Tensor
    kappa: float

    @cached_property
    def variance(self) -> Tensor:
        """``diag C``, ``[d]``."""
        return self.outputs.square().mean(0)

    @property
    def many(self) -> bool:
        """Whether the rows are so many that products of size ``d^3`` cost less."""
        count, size = self.outputs.shape
        return count > 1.5 * size

    @cached_property
    def correlation(self) -> Tensor:
        """``C``, ``[d, d]``."""
        return self.outputs.T @ self.outputs / len(self.outputs)

    def without(self, share: float, scale: Tensor | None = None) -> Tensor:
        """Return ``diag(scale) R - share C R``, which takes the place of ``R``.

        For few rows ``C R = <x' (R' x')'>`` is a product of these rows.
        """
        count = len(self.outputs)
        left, shared = (self.correlation, 1) if self.many else (self.outputs.T, count)
        right = self.matrix.clone() if self.many else self.outputs @ self.matrix
        if scale is not None:
            self.matrix.mul_(scale[:, None])
        return self.matrix.addmm_(left, right, alpha=-share / shared)

    def energy(self) -> Tensor:
        """Return the mean squared off-diagonal of ``C`` over its mean squared diagonal."""
        count, size = self.outputs.shape
        few = count < size  # |C| = |x' x'^T| / n
        gram = self.outputs @ self.outputs.T / count if few else self.correlation
        diagonal = self.variance.square().sum()
        off = (gram.square().sum() - diagonal).clamp_min(0)
        return off / max(size - 1, 1) / diagonal.clamp_min(1e-30)


def kappa(moments: Moments, rate: float) -> Tensor:
    """Return the next ``R``: decorrelate, and bring the variances to one, in proportion."""
    share, variance = moments.kappa, moments.variance
    scale = 1 + rate * ((1 - share) * variance - share * (variance - 1))
    return moments.without(rate * (1 - share), scale)


def copi(moments: Moments, rate: float) -> Tensor:
    """Return the next ``R``: decorrelate alone."""
    return moments.without(rate, 1 + rate * moments.variance)


def scaled(moments: Moments, rate: float) -> Tensor:
    """Return the next ``R``: shrink what is shared, and keep the rows' length; no row of zeros."""
    before, after = moments.rows.norm(dim=1), moments.outputs.norm(dim=1)
    counted = (before > 0) & (after > 0)
    ratios = torch.where(counted, before, 0.0) / torch.where(counted, after, 1.0)
    gain = torch.where(counted.any(), ratios.sum() / counted.sum().clamp_min(1), 1.0)
    return moments.without(rate).mul_(gain)


def foldiak(moments: Moments, rate: float) -> Tensor:
    """Return the next ``R = M^-1``: ``(M + eta O)^-1 = (I + eta R O)^-1 R``, ``O = C - diag C``.

    ``M`` must stay positive definite, or the inhibition has no stable equilibrium: a rate beyond
    ``1 / (2 |R O|)`` counts as that, so that no direction of ``M`` loses more than half of itself
    in one update.  The equation is solved in double precision.
    """
    matrix, outputs = moments.matrix.double(), moments.outputs.double()
    push = (matrix @ outputs.T) @ (outputs / len(outputs))  # R C of these rows, then R diag C
    push -= matrix * outputs.square().mean(0)
    push *= (0.5 / push.norm().clamp_min(1e-30)).clamp_max(rate)
    push.diagonal().add_(1)
    found = torch.linalg.solve(push, matrix)
    return (0.5 * (found + found.T)).to(moments.matrix.dtype)


RULES: Registry[Callable[[Moments, float], Tensor]] = Registry(
    "biograd.decorrelation",
    {
        "kappa": kappa,
        "copi": copi,
        "scaled": scaled,
        "foldiak": foldiak,
    },
)
