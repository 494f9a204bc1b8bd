"""What a first look tells of a network's currents: which layers share one, feed back, and vary.

Noise at two layers whose outputs add up to one current would be drawn twice and each regression
would take the other's for chance; so such layers are one site, with one noise and one credit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from biograd.contracts import Plan, SiteShape, SiteTrace, Trace
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


def looped(trace: Trace) -> bool:
    """Return whether a layer is called several times in a pass."""
    return any(len(v.outputs) > 1 for site in trace.sites.values() for v in site.visits)


def unlinked(layers: Iterable[str]) -> Plan:
    """Return the plan of a pass whose graph ends at every layer's input."""
    return Plan(detach=frozenset(layers), slots=True)


def recurrent(layers: Mapping[str, Sequence[str]], trace: Trace) -> dict[str, tuple[str, ...]]:
    """Return the layers that receive what their own site's current has become, site by site.

    Args:
        layers: of each site.
        trace: of the plan ``unlinked``, so that whatever passes another layer does not count.
    """
    found = {
        name: tuple(
            layer
            for layer, visits in zip(names, trace.sites[name].visits, strict=True)
            if _reached(visits.received, trace.sites[name])
        )
        for name, names in layers.items()
        if name in trace.sites
    }
    return {name: own for name, own in found.items() if own}


def _reached(values: Sequence[Tensor], site: SiteTrace) -> bool:
    """Return whether a derivative leads from values to a site's current."""
    live = [value.sum() for value in values if value.requires_grad]
    outputs = [o for visits in site.visits for o in visits.outputs if o.requires_grad]
    if not live or not outputs:
        return False
    found = torch.autograd.grad(
        torch.stack(live).sum(), outputs, retain_graph=True, allow_unused=True
    )
    return any(gradient is not None for gradient in found)


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
