"""Leaky neurons over a whole trial, in place: the equations of ``Leaky`` without a graph of steps.

The backward pass is one reverse scan of ``dL/dv[t] = dL/ds[t] surrogate + beta dL/dv[t+1]``, the
forward derivative one scan of ``dv[t] = beta dv[t-1] + (1 - beta) R dg[t]``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.contracts.credit_paths import differentiated, starts
from biograd.neurons.leaky import Leaky
from biograd.neurons.scan import Course, check_end
from biograd.neurons.surrogate import Derivative


def serves(neuron: object, c: Any) -> bool:
    """Return whether a neuron is a leaky one with the same constants everywhere."""
    plain = type(neuron) is Leaky and not neuron.refractory_ms
    return plain and not any(isinstance(value, Tensor) for value in vars(c).values())


def record(
    neuron: Leaky, c: Any, current: Tensor, steps: int, potentials: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return spikes and, if asked, membrane potentials, ``[rows, steps, *U]``, without a graph.

    Args:
        c: the constants of the neuron.
        current: ``[rows, steps, *U]``, or ``[rows, 1, *U]`` for a constant current.

    Note:
        The loop works in place: no allocation per step.
    """
    spikes = current.new_empty((current.shape[0], steps, *current.shape[2:]))
    kept = torch.empty_like(spikes) if potentials else None
    potential = torch.zeros_like(current[:, 0])
    synaptic = torch.zeros_like(potential) if c.alpha else None
    threshold = torch.as_tensor(c.threshold, dtype=current.dtype, device=current.device)
    constant = current.shape[1] == 1
    for index in range(steps):
        drive = current[:, 0 if constant else index]
        if synaptic is not None:
            synaptic.mul_(c.alpha).add_(drive, alpha=1 - c.alpha)
            drive = synaptic
        if index and neuron.reset == "zero":
            potential.addcmul_(potential, spikes[:, index - 1], value=-1)
        potential.mul_(c.beta)
        potential.add_(drive, alpha=c.gain)
        if index and neuron.reset == "subtract":
            potential.sub_(spikes[:, index - 1], alpha=c.threshold)
        if kept is not None:
            kept[:, index] = potential
        torch.gt(potential, threshold, out=spikes[:, index])
    check_end({"v": potential}, spikes[:, -1], steps)
    return spikes, kept


@dataclasses.dataclass(frozen=True)
class _Course:
    """How a scan is differentiated: constants, steps, and where credit through time is cut."""

    neuron: Leaky
    c: Any
    steps: int
    window: int | None
    derivative: Derivative
    given: Course | None = None

    def backward(self, credit: Tensor, spikes: Tensor) -> Tensor:
        """Return ``dL/dI`` for ``dL/dv``, both without what comes from later steps."""
        c, result = self.c, torch.empty_like(credit)
        carry = torch.zeros_like(credit[:, 0])  # dL/dv[t], reached from later steps
        filtered = torch.zeros_like(carry)  # dL/dg[t]
        for index in reversed(range(self.steps)):
            if starts(index + 1, self.window):
                carry.zero_()
                filtered.zero_()
            carry.mul_(c.beta)
            if self.neuron.reset == "zero":
                carry.addcmul_(carry, spikes[:, index], value=-1)
            carry.add_(credit[:, index])
            filtered.mul_(c.alpha).add_(carry, alpha=c.gain)
            torch.mul(filtered, 1 - c.alpha, out=result[:, index])
        return result

    def forward(self, tangent: Tensor, spikes: Tensor) -> Tensor:
        """Return the tangent of ``v`` for one of ``I``: the transpose of ``backward``."""
        c, result = self.c, torch.empty_like(spikes)
        carry = torch.zeros_like(spikes[:, 0])
        filtered = torch.zeros_like(carry)
        constant = tangent.shape[1] == 1
        for index in range(self.steps):
            if starts(index, self.window):
                carry.zero_()
                filtered.zero_()
            if index and self.neuron.reset == "zero":
                carry.addcmul_(carry, spikes[:, index - 1], value=-1)
            drive = tangent[:, 0 if constant else index]
            filtered.mul_(c.alpha).add_(drive, alpha=1 - c.alpha)
            carry.mul_(c.beta).add_(filtered, alpha=c.gain)
            result[:, index] = carry
        return result


class _LeakyScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, course: _Course) -> Tensor:
        if course.given is not None:
            spikes, potentials = course.given.passed.clone(), course.given.states[1].clone()
        else:
            neuron, c = course.neuron, course.c
            spikes, found = record(neuron, c, current, course.steps, potentials=True)
            potentials = cast(Tensor, found)
        slopes = course.derivative(potentials.sub_(course.c.threshold))
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


def leaky_scan(
    neuron: Leaky,
    c: Any,
    current: Tensor,
    steps: int,
    window: int | None = None,
    derivative: Derivative | None = None,
    given: Course | None = None,
) -> Tensor:
    """Return the spikes ``[rows, steps, *U]`` of a population, fused over time.

    Args:
        c: the constants of the neuron.
        current: ``[rows, steps, *U]``, or ``[rows, 1, *U]`` for a constant current.
        window: number of steps after which credit through time is cut; None: never.
        derivative: stands in for the neuron's surrogate.
        given: the course, if another simulator has run it.
    """
    if differentiated(current):
        course = _Course(neuron, c, steps, window, derivative or neuron.derivative, given)
        return cast(Tensor, _LeakyScan.apply(current, course))
    return record(neuron, c, current.detach(), steps)[0]
