"""A leaky sum over time, ``y[t] = k y[t-1] + x[t]``, with memory that is linear in the steps."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LeakySum(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, decay: float) -> Tensor:
        return _scan(values, decay)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.decay = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scan(gradient.flip(1), ctx.decay).flip(1), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _scan(tangent, ctx.decay)


def _scan(values: Tensor, decay: float) -> Tensor:
    total = values.clone()
    before = None
    for step in total.unbind(1):
        if before is not None:
            step.add_(before, alpha=decay)
        before = step
    return total


def leaky_sum(values: Tensor, decay: float) -> Tensor:
    """Return ``y[t] = decay y[t-1] + x[t]`` of ``[rows, time, ...]``, from rest.

    Its derivative is the same scan: backward in time (``vjp``), or forward (``jvp``).

    >>> leaky_sum(torch.tensor([[1.0, 0.0, 2.0]]), 0.5)
    tensor([[1.0000, 0.5000, 2.2500]])
    """
    return cast(Tensor, _LeakySum.apply(values, decay))
