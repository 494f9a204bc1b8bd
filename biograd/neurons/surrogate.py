"""The threshold and what stands in for its derivative.

The derivative of a spike by the distance to the threshold is replaced by a surrogate (Neftci,
Mostafa & Zenke 2019, arXiv 1901.09948).  It goes backward (``vjp``) and forward (``jvp``) and is
evaluated once, in the forward pass: one is the exact transpose of the other even if the surrogate
is random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.contracts.credit_paths import differentiated
from biograd.registry import Registry

Surrogate = Callable[[Tensor, float], Tensor]
"""Distance to threshold and slope k to the derivative of the spike; 1 at the threshold."""
Derivative = Callable[[Tensor], Tensor]
"""Distance to threshold to the derivative of the spike."""


def fast_sigmoid(distance: Tensor, slope: float) -> Tensor:
    """Return ``1 / (1 + k|u|)^2`` (Zenke & Ganguli 2018)."""
    return distance.abs().mul_(slope).add_(1).pow_(-2)


def arctan(distance: Tensor, slope: float) -> Tensor:
    """Return ``1 / (1 + (k u)^2)``, the derivative of an arctangent (Fang et al. 2021)."""
    return (slope * distance).square_().add_(1).reciprocal_()


def gaussian(distance: Tensor, slope: float) -> Tensor:
    """Return ``exp(-(k u)^2 / 2)``: a noisy threshold with standard deviation ``1/k``."""
    return (slope * distance).square_().mul_(-0.5).exp_()


SURROGATES: Registry[Surrogate] = Registry(
    "biograd.surrogates",
    {"fast_sigmoid": fast_sigmoid, "arctan": arctan, "gaussian": gaussian},
)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        ctx.save_for_forward(slopes)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return gradient * slopes, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return tangent * slopes


def spike(
    distance: Tensor,
    surrogate: str = "fast_sigmoid",
    slope: float = 10.0,
    derivative: Derivative | None = None,
) -> Tensor:
    """Return 1 where ``distance`` to the threshold is above zero, in the dtype of ``distance``.

    Args:
        distance: membrane potential minus threshold.
        surrogate: name of the derivative, of steepness ``slope``.
        derivative: stands in for the surrogate.

    >>> u = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    >>> spike(u, "arctan", 1.0)
    tensor([0., 0., 1.], dtype=torch.float64, grad_fn=<_SpikeBackward>)
    >>> spike(u, "arctan", 1.0).sum().backward(); u.grad
    tensor([0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """
    if not differentiated(distance):
        return (distance > 0).to(distance.dtype)
    fixed = distance.detach()
    slopes = derivative(fixed) if derivative else SURROGATES[surrogate](fixed, slope)
    return cast(Tensor, _Spike.apply(distance, slopes))
