"""Spikes: the threshold, its surrogate derivatives, and a leaky integrate-and-fire scan.

Equation of one step of length dt, with ``alpha = exp(-dt/tau_syn)``, ``beta = exp(-dt/tau)``::

    g[t] = alpha g[t-1] + (1 - alpha) I[t]                     (g = I without a synaptic filter)
    v[t] = beta v[t-1] + (1 - beta) R g[t] - threshold s[t-1]    (reset "subtract")
    v[t] = beta v[t-1] (1 - s[t-1]) + (1 - beta) R g[t]          (reset "zero")
    s[t] = 1 if v[t] > threshold else 0

This is the exact solution of ``tau dv/dt = R g - v`` for a current that is constant in a step.  The
derivative of ``s`` by ``v`` is replaced by a surrogate; the reset is held constant in the backward
pass, as is usual (Neftci, Mostafa & Zenke 2019, arXiv 1901.09948).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.recipes import NeuronRecipe

Surrogate = Callable[[Tensor, float], Tensor]
"""Distance to threshold and slope k to the derivative of the spike; 1 at the threshold."""


def fast_sigmoid(distance: Tensor, slope: float) -> Tensor:
    """Return ``1 / (1 + k|u|)^2`` (Zenke & Ganguli 2018)."""
    return (1 + slope * distance.abs()).pow(-2)


def arctan(distance: Tensor, slope: float) -> Tensor:
    """Return ``1 / (1 + (k u)^2)``, the derivative of an arctangent (Fang et al. 2021)."""
    return 1 / (1 + (slope * distance).square())


def gaussian(distance: Tensor, slope: float) -> Tensor:
    """Return ``exp(-(k u)^2 / 2)``: a noisy threshold with standard deviation ``1/k``."""
    return torch.exp(-0.5 * (slope * distance).square())


SURROGATES: dict[str, Surrogate] = {
    "fast_sigmoid": fast_sigmoid,
    "arctan": arctan,
    "gaussian": gaussian,
}


@dataclasses.dataclass(frozen=True)
class Membrane:
    """The constants of the step equation."""

    beta: float
    alpha: float
    resistance: float
    threshold: float
    reset: Literal["zero", "subtract"]
    surrogate: str
    slope: float

    @property
    def gain(self) -> float:
        """The change of the potential in a step per unit of current, ``(1 - beta) R``."""
        return (1 - self.beta) * self.resistance

    @classmethod
    def of(cls, neuron: NeuronRecipe, dt_ms: float) -> Membrane:
        """Return the constants for time constants and ``dt_ms`` in milliseconds."""
        synaptic = neuron.synaptic_time_constant_ms
        return cls(
            beta=math.exp(-dt_ms / neuron.time_constant_ms),
            alpha=math.exp(-dt_ms / synaptic) if synaptic > 0 else 0.0,
            resistance=neuron.resistance,
            threshold=neuron.threshold,
            reset=neuron.reset,
            surrogate=neuron.surrogate,
            slope=neuron.slope,
        )


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor, surrogate: str, slope: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate, ctx.slope = surrogate, slope
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return gradient * SURROGATES[ctx.surrogate](distance, ctx.slope), None, None


def spike(distance: Tensor, surrogate: str = "fast_sigmoid", slope: float = 10.0) -> Tensor:
    """Return 1 where ``distance`` to the threshold is above zero, in the dtype of ``distance``.

    >>> u = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    >>> spike(u, "arctan", 1.0)
    tensor([0., 0., 1.], dtype=torch.float64, grad_fn=<_SpikeBackward>)
    >>> spike(u, "arctan", 1.0).sum().backward(); u.grad
    tensor([0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """
    return cast(Tensor, _Spike.apply(distance, surrogate, slope))


def step(
    membrane: Membrane, state: tuple[Tensor, Tensor, Tensor], current: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Advance ``(g, v, s)`` by one step of input ``current``; differentiable.

    Args:
        state: synaptic current, membrane potential and spikes of the step before, ``[rows, *U]``.
        current: input current ``[rows, *U]``.

    Returns:
        The new state and its spikes.
    """
    synaptic, potential, spikes = state
    synaptic = membrane.alpha * synaptic + (1 - membrane.alpha) * current
    reset = spikes.detach()
    if membrane.reset == "zero":
        potential = membrane.beta * potential * (1 - reset) + membrane.gain * synaptic
    else:
        potential = membrane.beta * potential + membrane.gain * synaptic
        potential = potential - membrane.threshold * reset
    spikes = spike(potential - membrane.threshold, membrane.surrogate, membrane.slope)
    return (synaptic, potential, spikes), spikes


def rest(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state of a population at rest for a current of this shape and dtype."""
    zero = torch.zeros_like(like)
    return zero, zero, zero


def record(
    membrane: Membrane, current: Tensor, steps: int, potentials: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return spikes and, if asked, membrane potentials, ``[rows, steps, *U]``, without a graph.

    Args:
        current: ``[rows, steps, *U]``, or ``[rows, 1, *U]`` for a constant current.

    Note:
        The loop works in place: no allocation per step.
    """
    spikes = current.new_empty((current.shape[0], steps, *current.shape[2:]))
    kept = torch.empty_like(spikes) if potentials else None
    potential = torch.zeros_like(current[:, 0])
    synaptic = torch.zeros_like(potential) if membrane.alpha else None
    threshold = torch.as_tensor(membrane.threshold, dtype=current.dtype, device=current.device)
    constant = current.shape[1] == 1
    for index in range(steps):
        drive = current[:, 0 if constant else index]
        if synaptic is not None:
            synaptic.mul_(membrane.alpha).add_(drive, alpha=1 - membrane.alpha)
            drive = synaptic
        if index and membrane.reset == "zero":
            potential.addcmul_(potential, spikes[:, index - 1], value=-1)
        potential.mul_(membrane.beta)
        potential.add_(drive, alpha=membrane.gain)
        if index and membrane.reset == "subtract":
            potential.sub_(spikes[:, index - 1], alpha=membrane.threshold)
        if kept is not None:
            kept[:, index] = potential
        torch.gt(potential, threshold, out=spikes[:, index])
    return spikes, kept


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, membrane: Membrane, steps: int) -> Tensor:
        spikes, potentials = record(membrane, current, steps, potentials=True)
        ctx.save_for_backward(spikes, potentials)
        ctx.membrane, ctx.constant = membrane, current.shape[1] == 1
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        spikes, potentials = ctx.saved_tensors
        membrane: Membrane = ctx.membrane
        distance = potentials - membrane.threshold
        direct = gradient * SURROGATES[membrane.surrogate](distance, membrane.slope)
        carry = torch.zeros_like(direct[:, 0])  # dL/dv[t], reached from later steps
        filtered = torch.zeros_like(carry)  # dL/dg[t]
        result = torch.empty_like(direct)
        for index in reversed(range(direct.shape[1])):
            decay = membrane.beta * carry
            if membrane.reset == "zero":
                decay = decay * (1 - spikes[:, index])
            carry = direct[:, index] + decay
            filtered = membrane.alpha * filtered + membrane.gain * carry
            result[:, index] = (1 - membrane.alpha) * filtered
        if ctx.constant:
            result = result.sum(1, keepdim=True)
        return result, None, None


def scan(membrane: Membrane, current: Tensor, steps: int) -> Tensor:
    """Return the spikes ``[rows, steps, *U]`` of a population, fused over time.

    The backward pass is one reverse scan of ``dL/dv[t] = dL/ds[t] surrogate + beta dL/dv[t+1]``.

    Args:
        current: ``[rows, steps, *U]``, or ``[rows, 1, *U]`` for a constant current.
    """
    if current.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Scan.apply(current, membrane, steps))
    return record(membrane, current.detach(), steps)[0]
