"""What a first look tells of a network's currents: which layers share one, and what varies.

Noise at two layers whose outputs add up to one current would be drawn twice and each regression
would take the other's for chance; so such layers are one site, with one noise and one credit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from biograd.contracts import Plan, SiteShape, Trace
from biograd.randomness import generator

Losses = Callable[[Plan], Tensor]
"""A plan with one noisy copy to its losses ``[2, B]``."""
ROUNDING = 1e-3
"""Share of the effect of noise that rounding may make or leave."""


def varying(trace: Trace, name: str) -> bool:
    """Return whether what a site's first layer receives differs between the steps of a trial."""
    visits = trace.sites[name].visits[0]
    steps = [part for visit in visits.inputs for part in visit.unbind(1)] if visits.time else []
    first, *others = steps or visits.inputs
    return any(not torch.equal(first, other) for other in others)


def shared(names: Sequence[str], trace: Trace, losses: Losses) -> list[list[str]]:
    """Return the sites whose layers feed one current, group by group.

    Noise does the same at each of them, and at one of them it takes away what its opposite does at
    another; so nothing need be differentiable.

    Args:
        names: of sites with one layer each.
        losses: what a plan finds.
    """
    groups: list[list[str]] = []
    for shape, alike in _by_shape(names, trace).items():
        noise = _noise(trace, alike[0], shape)
        changes = {name: _change(losses, {name: noise}, shape) for name in alike}
        for name, change in changes.items():
            group = next((g for g in groups if _equal(changes.get(g[0]), change)), None)
            if group is None:
                groups.append([name])
            elif _zero(_change(losses, {group[0]: noise, name: -noise}, shape), change):
                group.append(name)
    return [group for group in groups if len(group) > 1]


def _by_shape(names: Sequence[str], trace: Trace) -> dict[SiteShape, list[str]]:
    """Return the sites of each shape that occurs twice or more."""
    found: dict[SiteShape, list[str]] = {}
    for name in names:
        found.setdefault(trace.sites[name].shape, []).append(name)
    return {shape: alike for shape, alike in found.items() if len(alike) > 1}


def _noise(trace: Trace, name: str, shape: SiteShape) -> Tensor:
    """Return noise for one copy, another in every step, as large as the site's currents."""
    current = trace.sites[name].trial_mean()
    size = (len(current), shape.steps, *shape.units)
    stream = generator(0, "shared currents", device=current.device)
    draw = torch.randn(1, *size, generator=stream, device=current.device, dtype=current.dtype)
    return draw * current.square().mean().sqrt().clamp_min(1e-3)


def _change(losses: Losses, noise: dict[str, Tensor], shape: SiteShape) -> Tensor:
    """Return what noise does to the loss of each example."""
    found = losses(Plan(noise=noise, time_bin=1 if shape.steps > 1 else None, graph=False))
    return found[1] - found[0]


def _zero(values: Tensor, beside: Tensor) -> bool:
    """Return whether values are zero beside others that are not."""
    return bool(values.abs().max() <= ROUNDING * beside.abs().max()) and bool(beside.any())


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and _zero(one - other, other)
