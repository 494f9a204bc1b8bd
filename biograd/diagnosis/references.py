"""What an estimate is compared with: back-propagation, or differences of the loss itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Trace
from biograd.diagnosis.setup import ParameterGroup, Setup, gradients
from biograd.engine import Engine
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.recipes import Count, Positive, validate

NAMES = ("auto", "backpropagation", "finite_difference")


class FiniteDifference:
    """The slope of the loss between ``w - h`` and ``w + h``, one weight at a time.

    This is the exact derivative of the loss averaged over that range: what is left to compare
    with where spikes have no derivative.

    Args:
        parameters: how many weights of each site are tried, chosen at random.
        step: ``h`` relative to the root mean square of the layer's weights; None: 0.2 for
            spiking networks, whose loss has steps, else 0.01.
    """

    def __init__(self, parameters: Count = 32, step: Positive | None = None) -> None:
        validate(FiniteDifference, locals())
        self.parameters, self.step = parameters, step


Reference = Literal["auto", "backpropagation", "finite_difference"] | FiniteDifference


def find(reference: Reference, engine: Engine) -> FiniteDifference | None:
    """Return the finite difference that is asked for, or None for back-propagation.

    Raises:
        CapabilityError: the substrate cannot differentiate.
        RecipeError: no such reference.
    """
    able = engine.substrate.capabilities if engine.differentiable else frozenset()
    if isinstance(reference, FiniteDifference):
        return reference
    if reference not in NAMES:
        raise RecipeError(f"probe: reference = {reference!r}: {nearest(reference, NAMES)}")
    if reference == "backpropagation" and "vjp" not in able:
        raise CapabilityError(f"probe: {_unable(engine)}: use reference='finite_difference'")
    by_difference = reference == "finite_difference" or "vjp" not in able
    return FiniteDifference() if by_difference else None


def _unable(engine: Engine) -> str:
    if not engine.differentiable:
        return f"the loss of {type(engine.task).__name__} has no derivative"
    return f"the substrate {engine.substrate.name!r} cannot do vjp"


def truths(setup: Setup, trace: Trace, difference: FiniteDifference | None) -> dict[str, Tensor]:
    """Return the reference of every group of parameters, as a vector.

    Args:
        trace: of a clean pass with its graph.
        difference: None for back-propagation; else the groups are reduced to the entries that
            are tried.
    """
    if difference is not None:
        return _differences(setup, difference)
    found = gradients(trace.loss, setup.parameters)
    return {group.name: group.vector(found) for group in setup.groups}


def words(setup: Setup, difference: FiniteDifference | None) -> str:
    """Say what the reference is."""
    local = " of the local losses" if setup.engine.objective.local else ""
    if difference is None:
        return f"{'the surrogate gradient' if setup.spiking else 'back-propagation'}{local}"
    return (
        f"central differences{local} (±{_step(setup, difference):.3g} of the RMS weight, "
        f"{difference.parameters} weights a layer)"
    )


def _step(setup: Setup, difference: FiniteDifference) -> float:
    return difference.step or (0.2 if setup.spiking else 0.01)


def _differences(setup: Setup, difference: FiniteDifference) -> dict[str, Tensor]:
    stream, found = torch.Generator(), {}
    stream.manual_seed(setup.stream("entries").initial_seed())
    for position, group in enumerate(setup.groups):
        sizes = [setup.parameters[place].numel() for place in group.places]
        chosen = torch.randperm(sum(sizes), generator=stream)[: difference.parameters]
        chosen = chosen.sort().values
        setup.groups[position] = dataclasses.replace(group, chosen=chosen.to(setup.device))
        width = _step(setup, difference) * _root_mean_square(setup, group)
        slopes = []
        for entry in chosen.tolist():
            place = 0
            while entry >= sizes[place]:
                entry, place = entry - sizes[place], place + 1
            owner = _owner(setup, group, group.places[place])
            slopes.append(_slope(setup, group.places[place], entry, width, owner))
        found[group.name] = torch.tensor(slopes, dtype=torch.float64, device=setup.device)
    return found


def _root_mean_square(setup: Setup, group: ParameterGroup) -> float:
    size = setup.weight_norm(group)
    return size / math.sqrt(sum(p.numel() for p in setup.weights(group))) if size > 0 else 1.0


def _owner(setup: Setup, group: ParameterGroup, place: int) -> str:
    """Return the site whose local loss trains a parameter; "": the loss of the outputs."""
    structure = setup.engine._structure
    if group.kind != "other":
        return str(structure.get("owners", {}).get(group.name, ""))
    owners = structure.get("parameter_owners", ())
    return owners[place] if owners else ""


def _slope(setup: Setup, place: int, entry: int, width: float, owner: str) -> float:
    """Return the central difference of the owner's loss by one entry of a parameter."""
    values = setup.parameters[place].detach()
    where = torch.unravel_index(torch.tensor(entry), values.shape)
    kept = values[where].clone()
    try:
        values[where] = kept + width
        above, upper = float(values[where]), _loss(setup, owner)
        values[where] = kept - width
        below, lower = float(values[where]), _loss(setup, owner)
    finally:
        values[where] = kept
    return (upper - lower) / (above - below)


def _loss(setup: Setup, owner: str) -> float:
    """Return the mean loss, or the local one that trains the parameter."""
    trace = setup.run(Plan(graph=False))
    if not owner:
        return float(trace.losses[0].double().mean())
    values = trace.local[owner][0].double()
    return float(values.sum()) / len(values)
