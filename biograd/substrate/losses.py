"""The losses of a pass, its copies' beside them, and their derivatives forward."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from biograd.contracts import Objective, ParameterNoise, Trace
from biograd.contracts.activity_bounds import Priced
from biograd.contracts.parameter_noise import perturb
from biograd.contracts.precision import forget_casts, unmixed, widened
from biograd.errors import CapabilityError
from biograd.substrate.foreign_functions import from_backward
from biograd.substrate.passes import Pass

Losses = tuple[Tensor, dict[str, Tensor], Tensor | None]
"""Losses ``[rows]``, local losses ``[rows, *cells]``, and what each step adds, ``[rows, T]``."""


def priced(now: Pass, objective: Objective) -> Priced | None:
    """Return what the activity of the clean copy costs, if it has bounds."""
    bounds = objective.bounds
    return None if bounds is None else Priced.of(bounds, now.bounded(bounds))


def losses_of(
    now: Pass, outputs: Tensor, targets: Tensor, objective: Objective, price: Priced | None = None
) -> Losses:
    """Return the losses of a pass.

    Args:
        price: of activity, if it has bounds.
    """
    local = {}
    for name, loss in objective.local.items():
        activity = now.activity(name)
        if activity is None:
            raise CapabilityError(f"site {name}: its activity was not reached: no local loss there")
        with unmixed(activity.device):
            local[name] = loss(widened(activity), targets)
    found = objective.loss(widened(outputs), targets)
    if price is not None and objective.bounds is not None:
        steps = price.steps(now.bounded(objective.bounds), found.shape[1] if found.dim() > 1 else 1)
        found = found + (steps if found.dim() > 1 else steps[:, 0])
    if found.dim() == 1:
        return found, local, None
    return objective.total(found), local, found


def extend(
    trace: Trace, losses: Tensor, local: Mapping[str, Tensor], steps: Tensor | None = None
) -> None:
    """Append the losses of noisy copies, ``[copies B, ...]``, to those of a trace."""
    batch = trace.losses.shape[1]
    if steps is not None and trace.step_losses is not None:
        trace.step_losses = torch.cat((trace.step_losses, steps.unflatten(0, (-1, batch))))
    trace.losses = torch.cat((trace.losses, losses.view(-1, batch)))
    for name, values in local.items():
        values = values.unflatten(0, (-1, batch))
        trace.local[name] = torch.cat((trace.local[name], values))


def add_slopes(trace: Trace, losses: Tensor, local: Mapping[str, Tensor]) -> None:
    """Append the tangents of losses ``[copies B, ...]`` to the slopes of a trace."""
    batch = trace.losses.shape[1]
    if trace.plan.parameter_tangents and forward_ad.unpack_dual(losses).tangent is None:
        raise CapabilityError(
            "differentiated forward, the loss depends on no parameter: take torch.inference_mode "
            "or detach() out of forward"
        )
    found = _tangent(losses).view(-1, batch)
    trace.slopes = found if trace.slopes is None else torch.cat((trace.slopes, found))
    for name, values in local.items():
        slopes = _tangent(values).unflatten(0, (-1, batch))
        known = trace.local_slopes.get(name)
        trace.local_slopes[name] = slopes if known is None else torch.cat((known, slopes))


def _tangent(values: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(values)
    return torch.zeros_like(primal) if tangent is None else tangent


@torch.no_grad()
def perturbed(
    module: nn.Module, noise: ParameterNoise, losses: Callable[[], Losses]
) -> Iterator[Losses]:
    """Yield the losses under the parameter noise of each copy.

    The parameters are restored from what they were, not by subtraction, so that they keep their
    bits; also when a copy fails.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    kept = [parameter.detach().clone() for parameter in parameters]
    found = []
    try:
        for copy, scale in enumerate(noise.scales):
            draws = noise.draw(copy, parameters)
            for parameter, value, draw in zip(parameters, kept, draws, strict=True):
                perturb(parameter, value, draw, scale)
            forget_casts(parameters[0].device)
            found.append(losses())
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        forget_casts(parameters[0].device)
    return iter(found)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: what is compiled may know nothing of hooks."""
    compiles = "torch._dynamo" in sys.modules  # its import takes a second
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        yield


@contextmanager
def forward_mode() -> Iterator[None]:
    """Differentiate forward while the context is open."""
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            # torch's first dual tensor compiles decompositions in a way that torch deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
        with from_backward():
            yield
