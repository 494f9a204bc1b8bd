"""Spikes: the threshold, its surrogate derivatives, and a leaky integrate-and-fire scan.

Equation of one step of length dt, with ``alpha = exp(-dt/tau_syn)``, ``beta = exp(-dt/tau)``::

    g[t] = alpha g[t-1] + (1 - alpha) I[t]                     (g = I without a synaptic filter)
    v[t] = beta v[t-1] + (1 - beta) R g[t] - threshold s[t-1]    (reset "subtract")
    v[t] = beta v[t-1] (1 - s[t-1]) + (1 - beta) R g[t]          (reset "zero")
    s[t] = 1 if v[t] > threshold else 0

This is the exact solution of ``tau dv/dt = R g - v`` for a current that is constant in a step.  The
derivative of ``s`` by ``v`` is replaced by a surrogate; the reset is held constant in derivatives,
as is usual (Neftci, Mostafa & Zenke 2019, arXiv 1901.09948).

Derivatives go backward (``vjp``) and forward (``jvp``) with the same surrogate, evaluated once, in
the forward pass: one is the exact transpose of the other even if the surrogate is random.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.credit_paths import differentiated, starts
from biograd.recipes import NeuronRecipe

Surrogate = Callable[[Tensor, float], Tensor]
"""Distance to threshold and slope k to the derivative of the spike; 1 at the threshold."""
Derivative = Callable[[Tensor], Tensor]
"""Distance to threshold to the derivative of the spike."""


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

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the surrogate derivative of a spike by its distance to the threshold."""
        return SURROGATES[self.surrogate](distance, self.slope)

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


def step(
    membrane: Membrane,
    state: tuple[Tensor, Tensor, Tensor],
    current: Tensor,
    derivative: Derivative | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Advance ``(g, v, s)`` by one step of input ``current``; differentiable.

    Args:
        state: synaptic current, membrane potential and spikes of the step before, ``[rows, *U]``.
        current: input current ``[rows, *U]``.
        derivative: stands in for the membrane's surrogate.

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
    distance = potential - membrane.threshold
    spikes = spike(distance, derivative=derivative or membrane.derivative)
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


@dataclasses.dataclass(frozen=True)
class _Course:
    """How a scan is differentiated: constants, steps, and where credit through time is cut."""

    membrane: Membrane
    steps: int
    window: int | None
    derivative: Derivative

    def backward(self, credit: Tensor, spikes: Tensor) -> Tensor:
        """Return ``dL/dI`` for ``dL/dv``, both without what comes from later steps."""
        membrane, result = self.membrane, torch.empty_like(credit)
        carry = torch.zeros_like(credit[:, 0])  # dL/dv[t], reached from later steps
        filtered = torch.zeros_like(carry)  # dL/dg[t]
        for index in reversed(range(self.steps)):
            if starts(index + 1, self.window):
                carry.zero_()
                filtered.zero_()
            carry.mul_(membrane.beta)
            if membrane.reset == "zero":
                carry.addcmul_(carry, spikes[:, index], value=-1)
            carry.add_(credit[:, index])
            filtered.mul_(membrane.alpha).add_(carry, alpha=membrane.gain)
            torch.mul(filtered, 1 - membrane.alpha, out=result[:, index])
        return result

    def forward(self, tangent: Tensor, spikes: Tensor) -> Tensor:
        """Return the tangent of ``v`` for one of ``I``: the transpose of ``backward``."""
        membrane, result = self.membrane, torch.empty_like(spikes)
        carry = torch.zeros_like(spikes[:, 0])
        filtered = torch.zeros_like(carry)
        constant = tangent.shape[1] == 1
        for index in range(self.steps):
            if starts(index, self.window):
                carry.zero_()
                filtered.zero_()
            if index and membrane.reset == "zero":
                carry.addcmul_(carry, spikes[:, index - 1], value=-1)
            drive = tangent[:, 0 if constant else index]
            filtered.mul_(membrane.alpha).add_(drive, alpha=1 - membrane.alpha)
            carry.mul_(membrane.beta).add_(filtered, alpha=membrane.gain)
            result[:, index] = carry
        return result


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, course: _Course) -> Tensor:
        spikes, potentials = record(course.membrane, current, course.steps, potentials=True)
        assert potentials is not None
        slopes = course.derivative(potentials.sub_(course.membrane.threshold))
        ctx.save_for_backward(spikes, slopes)
        ctx.save_for_forward(spikes, slopes)
        ctx.course, ctx.constant = course, current.shape[1] == 1
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        spikes, slopes = ctx.saved_tensors
        result = ctx.course.backward(gradient * slopes, spikes)
        return result.sum(1, keepdim=True) if ctx.constant else result, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        spikes, slopes = ctx.saved_tensors
        return cast(Tensor, ctx.course.forward(tangent, spikes).mul_(slopes))


def scan(
    membrane: Membrane,
    current: Tensor,
    steps: int,
    window: int | None = None,
    derivative: Derivative | None = None,
) -> Tensor:
    """Return the spikes ``[rows, steps, *U]`` of a population, fused over time.

    The backward pass is one reverse scan of ``dL/dv[t] = dL/ds[t] surrogate + beta dL/dv[t+1]``,
    the forward derivative one scan of ``dv[t] = beta dv[t-1] + (1 - beta) R dg[t]``.

    Args:
        current: ``[rows, steps, *U]``, or ``[rows, 1, *U]`` for a constant current.
        window: number of steps after which credit through time is cut; None: never.
        derivative: stands in for the membrane's surrogate.
    """
    if differentiated(current):
        course = _Course(membrane, steps, window, derivative or membrane.derivative)
        return cast(Tensor, _Scan.apply(current, course))
    return record(membrane, current.detach(), steps)[0]
