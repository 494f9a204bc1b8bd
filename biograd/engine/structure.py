"""What depends on what in a network: found by autograd in one clean pass, not declared.

A local loss credits what lies between the boundary before it and itself; a boundary is one only if
nothing passes by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from biograd.contracts import Plan, Site, Trace
from biograd.errors import CapabilityError

Exclusive = Callable[[Tensor, tuple[int, ...], tuple[int, ...]], int]
"""Gradient by a site's units ``[*U]`` of the loss of one cell, the shape of the cells, and that
cell, to the number of leading cell axes that the site's units keep to."""


@dataclasses.dataclass
class Places:
    """Where a parameter acts; nowhere if no derivative leads to it.

    Attributes:
        layers: sites whose current it moves, as a weight of one of their layers for instance.
        blocks: sites behind whose current, and before whose activity ends, it acts.
        before: whether it acts on what the first site's layers receive.
        behind: whether it acts behind the last site's current, or past all of them.
    """

    layers: list[str] = dataclasses.field(default_factory=list)
    blocks: list[str] = dataclasses.field(default_factory=list)
    before: bool = False
    behind: bool = False

    @property
    def nowhere(self) -> bool:
        """Whether no derivative leads to it."""
        return not (self.layers or self.blocks or self.before or self.behind)


def dissected(sites: Sequence[Site]) -> Plan:
    """Return the plan of a pass whose graph ends at every layer's input and behind every current.

    What a tensor of its trace depends on then acts between the cut before it and itself.
    """
    layers = frozenset(name for site in sites for name in site.modules)
    return Plan(cut=frozenset(site.name for site in sites), detach=layers, slots=True)


def places(trace: Trace, parameters: Sequence[Tensor]) -> list[Places]:
    """Return where each parameter acts, from a trace of the plan ``dissected``."""
    found, names = [Places() for _ in parameters], list(trace.sites)

    def reached(values: Iterable[Tensor]) -> list[Places]:
        live = [value.sum() for value in values if value.requires_grad]
        gradients = _gradients(sum(live), parameters)
        pairs = zip(found, gradients, strict=True)
        return [place for place, gradient in pairs if gradient is not None]

    for number, name in enumerate(names):
        site = trace.sites[name]
        for place in reached(value for visits in site.visits for value in visits.outputs):
            place.layers.append(name)
        for place in reached([] if site.activity is None else [site.activity]):
            place.blocks.append(name)
        received = [value for visits in site.visits for value in visits.received]
        for place in reached(received[: not number]):
            place.before = True  # in the first call: later ones may receive what a loop brings back
        for place in reached(received[not number :]):
            if not place.blocks:  # by a layer whose input is nobody's activity
                place.blocks.append(names[max(number - 1, 0)])
    for place in reached([trace.loss]):
        place.behind = True
    return found


def strangers(trace: Trace, known: Iterable[Tensor], loss: bool) -> Iterator[Tensor]:
    """Yield what currents and activities can be differentiated by, beside what is known.

    Args:
        trace: of a plan with slots.
        known: parameters, inputs; nothing is looked for behind them.
        loss: look at what the loss is differentiated by instead.
    """
    sites = trace.sites.values()
    visits = [visits for site in sites for visits in site.visits]
    ends = [v for visit in visits for v in (*visit.outputs, *visit.received)]
    ends += [site.activity for site in sites if site.activity is not None]
    own = [*known, *(site.slot for site in sites if site.slot is not None)]
    own += trace.sites[list(trace.sites)[-1]].visits[0].outputs  # a leaf where all is frozen
    seen = {id(one) for one in own} | {id(one.grad_fn) for one in known if one.grad_fn is not None}
    nodes: list[Any] = [one.grad_fn for one in ([trace.loss] if loss else ends)]
    kept: list[Any] = []  # so that no id comes back
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue
        kept.append(node)
        seen.add(id(node))
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield leaf
        nodes += [parent for parent, _ in node.next_functions]


def heads(trace: Trace) -> list[str]:
    """Return the sites but the last whose currents move the loss, but go into no layer.

    They make outputs, too.  What is frozen with all that lies before it is not looked at.

    Args:
        trace: of a plan with slots, and nothing cut.
    """
    names, found = list(trace.sites), []
    for name in names[:-1]:
        currents = [value for visits in trace.sites[name].visits for value in visits.outputs]
        total = sum(v.sum() for one in names for visits in trace.sites[one].visits
                    for v in visits.received if v.requires_grad)  # fmt: skip
        onward, loss = _gradients(total, currents), _gradients(trace.loss, currents)
        if all(one is None for one in onward) and any(one is not None for one in loss):
            found.append(name)
    return found


def owners(hidden: Sequence[str], local: Sequence[str]) -> dict[str, str]:
    """Return for each site the first site at or behind it with a local loss; "": none.

    >>> owners(["a", "b", "c"], ["b"])
    {'a': 'b', 'b': 'b', 'c': ''}
    """
    found, owner = {}, ""
    for name in reversed(hidden):
        owner = name if name in local else owner
        found[name] = owner
    return {name: found[name] for name in hidden}


def parameter_owners(local: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> tuple[str, ...]:
    """Return for each parameter the site whose local loss depends on it first; "": none.

    Args:
        local: name of a site to its local losses, with their graph.
    """
    found = [""] * len(parameters)
    for name, losses in local.items():
        gradients = _gradients(losses.sum(), parameters)
        for place, gradient in enumerate(gradients):
            if gradient is not None and not found[place]:
                found[place] = name
    return tuple(found)


def levels(
    trace: Trace, local: Mapping[str, Tensor], owner: Mapping[str, str], exclusive: Exclusive
) -> dict[str, int]:
    """Return for each site how many leading axes of its local loss's cells are its units' own.

    The loss of one cell in the middle is differentiated by the currents of the sites before it.
    """
    found = {}
    for name, losses in local.items():
        sites = [site for site, of in owner.items() if of == name]
        cells = tuple(losses.shape[1:])
        cell = tuple(length // 2 for length in cells)
        chosen = losses.sum(0)[cell].sum()
        currents = [trace.sites[site].visits[0].outputs[0] for site in sites]
        for site, gradient in zip(sites, _gradients(chosen, currents), strict=True):
            units = trace.sites[site].shape.units
            if gradient is None or not cells:
                found[site] = 0
                continue
            while gradient.dim() > len(units):
                gradient = gradient.abs().amax(0)
            found[site] = exclusive(gradient, cells, cell)
    return found


def check_boundaries(trace: Trace, boundaries: Sequence[str]) -> None:
    """Refuse boundaries that a connection passes by.

    Raises:
        CapabilityError: with the site.
    """
    names = list(trace.sites)
    for number, name in enumerate(boundaries):
        _check_own(trace, name, names[names.index(name) + 1 :])
        before = [v for n in names[: names.index(name) + 1] for v in trace.sites[n].visits]
        currents = [output for visits in before for output in visits.outputs]
        behind = [trace.sites[b].activity for b in boundaries[number + 1 :]]
        behind += [visits.outputs[-1] for visits in trace.sites[names[-1]].visits]
        total = sum(value.sum() for value in behind if value is not None)
        if any(gradient is not None for gradient in _gradients(total, currents)):
            raise CapabilityError(
                f"a connection passes by the activity of site {name!r}, so that credit cannot be "
                "stopped there: give the module that returns all of it, "
                "sites=[biograd.Site(..., activity=...)]"
            )


def _check_own(trace: Trace, name: str, later: Sequence[str]) -> None:
    """Refuse an activity in which that of later sites lies, too: a loop leads back from them."""
    activity = trace.sites[name].activity
    for other in later if activity is not None else ():
        outputs = [o for visits in trace.sites[other].visits for o in visits.outputs]
        total = None if activity is None else activity.sum()
        if any(gradient is not None for gradient in _gradients(total, outputs)):
            raise CapabilityError(
                f"what stands for the activity of site {name!r} also holds what site {other!r} "
                "has made of an earlier step: name the module that returns it alone, "
                "sites=[biograd.Site(..., activity=...)]"
            )


def _gradients(value: object, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return [None] * len(tensors)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not wanted:  # all that lies before is frozen
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]
