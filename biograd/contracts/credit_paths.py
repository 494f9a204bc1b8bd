"""The ways by which credit passes through a current: to the layer's weights and to its input.

Usually they are one tensor.  Online training through time (``Transport.traces``) lets credit pass
to the weights through all of the membrane's past and to the input only through a window; then a
current is two tensors of the same values, one whose graph leads to the weights and one whose graph
leads to the input, and a population simulates along both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from biograd.contracts import Transport
from biograd.contracts.trial_part import State
from biograd.errors import CapabilityError

Way = tuple[Tensor, int | None]
"""A current, and the number of steps after which credit through time is cut on this way."""

Ways = tuple[dict[str, Tensor], int | None]
"""The same of several currents, by port."""


def differentiated(values: Tensor) -> bool:
    """Return whether a derivative is asked for, backward (a graph) or forward (a tangent)."""
    backward = values.requires_grad and torch.is_grad_enabled()
    return backward or forward_ad.unpack_dual(values).tangent is not None


def split(current: Tensor, by_input: Tensor) -> Tensor:
    """Return ``current`` as a new tensor that remembers a second way back.

    Args:
        current: its graph leads to the layer's weights.
        by_input: its graph leads to the layer's input; only its derivative counts, so that a
            bias may be missing in it.
    """
    divided = current.view_as(current)
    divided.__dict__["by_input"] = join((current.detach(), by_input))
    return divided


def join(parts: Sequence[Tensor]) -> Tensor:
    """Return the value of the first part; credit passes to all of them alike."""
    joined, *others = parts
    for other in others:
        joined = joined + (other - other.detach())
    return joined


def with_way(value: Tensor, way: Tensor) -> Tensor:
    """Return ``value`` with the way back of ``way``, which is the same up to rounding."""
    return join((value, way)) if differentiated(way) else value


def joined(current: Tensor) -> Tensor:
    """Return a current that may have been split as one way."""
    by_input = _by_input(current)
    return current if by_input is None else join((current, by_input))


def mapped(change: Callable[..., Tensor], *currents: Tensor) -> Tensor:
    """Return what a linear operation makes of currents, along both of their ways."""
    changed = change(*currents)
    by_input = [_by_input(current) for current in currents]
    split_all = all(
        way is not None or not differentiated(current)
        for way, current in zip(by_input, currents, strict=True)
    )
    if split_all and any(way is not None for way in by_input):
        ways = zip(by_input, currents, strict=True)
        changed = changed.view_as(changed)
        changed.__dict__["by_input"] = change(*(c if way is None else way for way, c in ways))
    return changed


def ways(current: Tensor, transport: Transport) -> list[Way]:
    """Return the one or two ways through a current; the first carries its value.

    Raises:
        CapabilityError: the credit shall take two ways, but what arrives is not a layer's output.
    """
    if not transport.traces:
        return [(joined(current), transport.window)]
    by_input = _by_input(current)
    if by_input is None and differentiated(current):
        raise CapabilityError(
            "online training through time: a population's current must come straight from the "
            "layers of its own site, with no operation in between: name them, sites=[biograd.Site("
            "..., activity='the population')]"
        )
    return [(current, None), (current.detach() if by_input is None else by_input, transport.window)]


def needed(found: list[Ways]) -> list[Ways]:
    """Return the first way, which carries the value, and those that lead anywhere."""
    return [
        (drives, window)
        for place, (drives, window) in enumerate(found)
        if not place or any(differentiated(values) for values in drives.values())
    ]


def hand_over(state: tuple[Tensor, ...], handed: list[tuple[Tensor, Tensor]] | None) -> State:
    """Return the state from which a window starts: no credit passes to the window before.

    Args:
        state: variables at the end of the window before, each ``[rows, *U]``.
        handed: where to keep them, stacked ``[rows, P, *U]``, and the leaf that is returned in
            their place; None: nothing is kept.
    """
    if handed is None:
        return tuple(values.detach() for values in state)
    ended = torch.stack(state, 1)
    begun = ended.detach().clone().requires_grad_()
    handed.append((ended, begun))
    return begun.unbind(1)


def starts(step: int, window: int | None) -> bool:
    """Return whether credit through time is cut before ``step``.

    >>> [starts(step, 2) for step in range(5)], starts(4, None)
    ([False, False, True, False, True], False)
    """
    return window is not None and step > 0 and step % window == 0


def without_derivative(values: Tensor, reason: str, inputs: Iterable[Tensor]) -> Tensor:
    """Return values that depend on inputs, with a way back that says why there is none."""
    inputs = list(inputs)
    if not any(differentiated(value) for value in inputs):
        return values
    return cast(Tensor, _NoDerivative.apply(values, reason, *inputs))


class _NoDerivative(torch.autograd.Function):
    """Values of which no derivative can be had: whoever asks for it is told why."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, reason: str, *inputs: Tensor) -> Tensor:
        ctx.reason = reason
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise CapabilityError(f"no derivative: {ctx.reason}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise CapabilityError(f"no derivative: {ctx.reason}")


def _by_input(current: Tensor) -> Tensor | None:
    return cast("Tensor | None", getattr(current, "by_input", None))
