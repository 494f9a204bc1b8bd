"""Variables of populations along a trial, and the credit that a rule delivers, without a trace.

A population's states are computed again from its currents and from what it passed on, whoever
simulated it; credit and gradients by a copy of the engine, so that the training goes on as if
nobody had looked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from biograd.engine import Engine
from biograd.errors import CapabilityError
from biograd.neurons.neuron import Functions
from biograd.simulators.population import Population

NEURON = {"potential": ("v", "u"), "synaptic_current": ("g",), "adaptation": ("w", "a")}
"""What the neurons call their variables."""


def check_variables(network: nn.Module, layers: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a variable that a layer does not have.

    Raises:
        CapabilityError: with the layer.
    """
    parts = dict(network.named_modules())
    for layer in layers:  # the sites of a user may have other names than modules
        part = parts.get(layer)
        for name in (name for name in wanted if name in NEURON):
            if not isinstance(part, Population):
                raise CapabilityError(
                    f"recording.variables: {layer}: {name} is recorded of populations of biograd "
                    "alone: leave the layer out by recording.layers"
                )
            known = part.neuron.variables
            if not set(NEURON[name]) & set(known):
                raise CapabilityError(f"recording.variables: {layer}: its neurons have no {name}")


@contextmanager
def followed(
    network: nn.Module, layers: Sequence[str], wanted: Sequence[str]
) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Collect the variables of layers while the network runs, ``[B, time, units]`` each."""
    found: dict[tuple[str, str], Tensor] = {}
    names = [name for name in wanted if name in NEURON]
    handles = []
    for layer in layers if names else ():

        def keep(part: Any, given: Any, more: Any, passed: Tensor, layer: str = layer) -> None:
            courses = _course(part, *given, passed=passed, **more)
            for name in names:
                own = next(one for one in NEURON[name] if one in courses)
                found[layer, name] = courses[own].flatten(2)

        part = network.get_submodule(layer)
        handles.append(part.register_forward_hook(keep, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _course(
    part: Population, current: Any, recurrent: nn.Module | None = None, *, passed: Tensor
) -> dict[str, Tensor]:
    """Return a population's variables after every step, given what it passed on."""
    neuron, constants = part.neuron, part.constants()
    into = dict(part.trials(current))
    out = torch.zeros_like(passed[:, 0])
    x = neuron.begin(out)
    kept: list[Any] = []
    for t in range(part.steps):
        now = {name: v[:, t if v.shape[1] > 1 else 0] for name, v in into.items()}
        if recurrent is not None:
            now[part.port] = now[part.port] + recurrent(out)
        x = neuron.advance(x, out, out, SimpleNamespace(**now), constants, Functions)
        out = passed[:, t]
        kept.append(x)
    return {
        name: torch.stack([state[k] for state in kept], 1)
        for k, name in enumerate(neuron.variables)
    }


def credited(
    engine: Engine, inputs: Tensor, targets: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the credit of every site and the gradient of every parameter, as the rule gives them.

    Credit is ``d loss / d current`` of the clean pass, ``[B, *U]``, with the steps of a layer that
    is called in each on axis 1; a site that receives none is left out.

    Raises:
        CapabilityError: the rule cannot be asked about rows that it does not learn from.
    """
    try:
        twin = copy.deepcopy(engine)
    except Exception as error:
        raise CapabilityError(
            f"recording: credit and gradients need a copy of the engine: {error}"
        ) from error
    calls: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(), torch.enable_grad():
        handles = [
            twin.network.get_submodule(site.modules[0]).register_forward_hook(
                _keeping(calls.setdefault(site.name, []))
            )
            for site in twin.substrate.sites
        ]
        twin.network.train()
        for parameter in twin.network.parameters():
            parameter.grad = None
        twin(inputs, targets).backward()
        for handle in handles:
            handle.remove()
    rows = len(inputs)
    credit = {name: _delivered(outputs, rows) for name, outputs in calls.items()}
    grads = {name: p.grad for name, p in twin.network.named_parameters() if p.grad is not None}
    return {name: one for name, one in credit.items() if one is not None}, grads


def _keeping(kept: list[Tensor]) -> Any:
    def keep(_part: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.retain_grad()
            kept.append(output)

    return keep


def _delivered(outputs: Sequence[Tensor], rows: int) -> Tensor | None:
    """Return the gradients of a layer's outputs, of the clean rows, which stand first."""
    found = [one.grad[:rows] for one in outputs if one.grad is not None and len(one) >= rows]
    if not found:
        return None
    return found[0] if len(found) == 1 else torch.stack(found, 1)


def by_layer(
    credit: Mapping[str, Tensor], engine: Engine, layers: Sequence[str]
) -> dict[str, Tensor]:
    """Return the credit of sites by the names of the layers whose current they are."""
    found = {}
    for site in engine.substrate.sites:
        names = (site.name, site.population, site.activity)
        layer = next((name for name in names if name in layers), None)
        if layer is not None and site.name in credit:
            one = credit[site.name]
            constant = site.time[0] and one.dim() > 2 and one.shape[1] == 1
            found[layer] = one[:, 0] if constant else one  # a current without time
    return found
