"""Autograd functions of other libraries, seen where they are applied: surrogates, above all.

They have a ``backward``, ``v -> J^T v``, and no ``jvp``, ``u -> J u``.  One follows from the other:
where every output depends on one element of the input, ``J`` is diagonal and ``J u = (J^T 1) u``;
elsewhere ``J^T v`` is linear in ``v``, and its own derivative by ``v``, transposed, is ``J``.  A
function whose values are 1 above zero and 0 below is a threshold, whose slope a rule may replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

HOME: Any = Function.__mro__[1]
"""The class from which every autograd function has its ``apply`` and a ``jvp`` that only raises."""


Slope = Callable[[Tensor], Tensor]
"""Distance to the threshold to the derivative of the spike."""


@contextmanager
def _watched(apply: Callable[..., Any]) -> Iterator[None]:
    """Let every autograd function go through ``apply`` while the context is open."""
    before = HOME.__dict__.get("apply")
    HOME.apply = classmethod(apply)
    try:
        yield
    finally:
        if before is None:
            del HOME.apply
        else:
            HOME.apply = before


@contextmanager
def from_backward() -> Iterator[None]:
    """Give functions without a ``jvp`` one from their ``backward`` while the context is open."""
    with _watched(_applied):
        yield


@contextmanager
def thresholds(slope: Slope | None) -> Iterator[None]:
    """Give thresholds another slope while the context is open; None: their own."""
    if slope is None:
        yield
        return

    def apply(kind: type[Function], *given: Any, **named: Any) -> Any:
        found = super(HOME, kind).apply(*given, **named)
        distance = next((v for v in given if isinstance(v, Tensor)), None)
        if distance is None or not is_threshold(distance, found):
            return found
        fixed = distance.detach()
        return found.detach() + slope(fixed).detach() * (distance - fixed)

    with _watched(apply):
        yield


def is_threshold(distance: Tensor, found: Any) -> bool:
    """Return whether values with a graph are 1 where a distance is above zero and 0 below."""
    if not isinstance(found, Tensor) or not found.requires_grad or found.shape != distance.shape:
        return False
    return bool((found == (distance > 0)).all()) or bool((found == (distance >= 0)).all())


def _applied(kind: type[Function], *given: Any, **named: Any) -> Any:
    """Apply a function; along tangents by its backward derivative, if it has no other."""
    apply = super(HOME, kind).apply
    parts = [forward_ad.unpack_dual(v) if isinstance(v, Tensor) else None for v in given]
    tangents = [None if part is None else part.tangent for part in parts]
    if kind.jvp is not Function.jvp or not any(t is not None for t in tangents):
        return apply(*given, **named)
    values = [v if p is None else p.primal.detach() for v, p in zip(given, parts, strict=True)]
    leaves = {at: values[at].requires_grad_() for at, t in enumerate(tangents) if t is not None}
    with torch.enable_grad():
        found = apply(*values, **named)
    several = isinstance(found, tuple)
    moved = [tangents[at] for at in leaves]
    made = [
        _with_tangent(one, list(leaves.values()), moved) for one in (found if several else (found,))
    ]
    return tuple(made) if several else made[0]


def _with_tangent(output: Any, inputs: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
    """Return an output with its tangent, without a graph; what has no derivative as it is."""
    if not isinstance(output, Tensor) or not output.requires_grad:
        return output
    moved = [pushed(output, x, u) for x, u in zip(inputs, tangents, strict=True)]
    return forward_ad.make_dual(output.detach(), torch.stack(moved).sum(0))


def pushed(output: Tensor, given: Tensor, tangent: Tensor) -> Tensor:
    """Return ``J u`` for the derivative ``J`` of an output by what it was made of.

    Raises:
        NotImplementedError: ``J`` is not diagonal, and ``backward`` cannot be differentiated.
    """
    (slope,) = _pulled(output, given, torch.ones_like(output))
    probe = torch.arange(1, output.numel() + 1, device=output.device).to(output).cos()
    probe = probe.view_as(output)
    (seen,) = _pulled(output, given, probe)
    if output.shape == given.shape and torch.allclose(seen, probe * slope, rtol=1e-4, atol=1e-7):
        return (slope * tangent).to(output.dtype)
    with torch.enable_grad():
        weights = torch.zeros_like(output, requires_grad=True)
        (pulled,) = _pulled(output, given, weights, create_graph=True)
        if pulled.requires_grad:
            return torch.autograd.grad(pulled, weights, tangent.to(pulled.dtype))[0].detach()
    raise NotImplementedError("its backward cannot be differentiated, and it has no jvp")


def _pulled(output: Tensor, given: Tensor, weights: Tensor, **how: bool) -> tuple[Tensor, ...]:
    """Return ``J^T v``."""
    return torch.autograd.grad(
        output, given, weights, retain_graph=True, materialize_grads=True, allow_unused=True, **how
    )
