"""What a run file keeps of a network: what its populations do, and what they are.

A network of biograd names its populations.  Of a module of the user's the activity of a block is,
as for the rules, what the next site receives (``Site.activity``), whatever made it: what its units
are is not known, and is called so.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biograd.contracts import Site
from biograd.substrate.network import Network, recorded
from biograd.training import placed

SYNAPTIC = {nn.Linear: 1, nn.Conv1d: 2, nn.Conv2d: 3, nn.Conv3d: 4}
"""How many axes the units have that a layer receives; what stands before them is rows and time."""
SNNTORCH = ("beta", "alpha", "threshold", "reset_mechanism")


@dataclasses.dataclass(frozen=True)
class Observed:
    """The activity of a layer.

    Attributes:
        kind: "spiking": 0 or 1 in every step; "rate"; "unknown": of a module of the user's.
        values: ``[B, steps, units]`` of spikes, else ``[B, units]``, the mean over the steps.
        shape: of the units.
        steps: of a trial, 0 without time.
    """

    kind: Literal["rate", "spiking", "unknown"]
    values: Tensor
    shape: tuple[int, ...]
    steps: int = 0


@torch.no_grad()
def observe(network: nn.Module, sites: Sequence[Site], inputs: Tensor) -> dict[str, Observed]:
    """Return the activity of every layer on ``inputs`` ``[B, ...]``, in evaluation mode."""
    training = network.training
    network.eval()
    try:
        given = placed(network, inputs, inputs)[0]
        if isinstance(network, Network):
            return _populations(network, given)
        return _blocks(network, sites, given)
    finally:
        network.train(training)


def _populations(network: Network, inputs: Tensor) -> dict[str, Observed]:
    with recorded(network, network.populations) as outputs:
        network(inputs)
    steps, found = network.steps, {}
    for name, parts in outputs.items():
        spiking = network.fires(name)
        if len(parts) == 1:
            value = parts[0]
        else:  # called in every step
            value = torch.stack(parts, 1) if len(parts) == steps else torch.stack(parts).mean(0)
        timed = steps > 1 or spiking
        value = value.mean(1) if timed and not spiking else value
        shape = tuple(value.shape[2:] if spiking else value.shape[1:])
        value = value.flatten(2) if spiking else value.flatten(1)
        kind: Literal["spiking", "rate"] = "spiking" if spiking else "rate"
        found[name] = Observed(kind, value.cpu(), shape, steps if timed else 0)
    return found


def _blocks(network: nn.Module, sites: Sequence[Site], inputs: Tensor) -> dict[str, Observed]:
    received: dict[str, list[Tensor]] = {}
    reached: dict[str, list[Tensor]] = {}
    handles = []
    for site in sites:

        def enter(_part: nn.Module, given: tuple[Any, ...], name: str = site.name) -> None:
            before = received.pop(name, [])  # the last call tells the order
            received[name] = [*before, *given[:1]]

        def leave(_part: nn.Module, _: object, output: Any, name: str = site.name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            reached.setdefault(name, []).append(first)

        first = network.get_submodule(site.modules[0])
        handles.append(first.register_forward_pre_hook(enter))
        if site.activity is not None:
            part = network.get_submodule(site.activity)
            handles.append(part.register_forward_hook(leave))
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    known, found = {site.name: site for site in sites}, {}
    for name, behind in pairwise(received):
        site = known[name]
        layer = None if site.activity else network.get_submodule(known[behind].modules[0])
        calls = reached.get(name, []) if site.activity else received[behind]
        one = None if site.block else _by_row(calls, layer, len(inputs))
        if one is not None:
            found[name] = one
    return found


def _by_row(calls: Sequence[Tensor], layer: nn.Module | None, rows: int) -> Observed | None:
    """Return the mean activity of each row over calls and steps; None: rows cannot be told."""
    if not calls or any(value.shape != calls[0].shape for value in calls):
        return None
    value = torch.stack(tuple(calls)).float().mean(0)
    axes = [axes for kind, axes in SYNAPTIC.items() if isinstance(layer, kind)]
    lead = list(value.shape[: max(value.dim() - axes[0], 0) if axes else 1])
    if rows not in lead:
        return None
    value = value.movedim(lead.index(rows), 0)
    shape = tuple(value.shape[len(lead) :])
    steps = len(calls) * math.prod(value.shape[1 : len(lead)])
    value = value.reshape(rows, -1, math.prod(shape)).mean(1)
    return Observed("unknown", value.cpu(), shape, steps if steps > 1 else 0)


def neurons(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what neurons a network has, by the names of their modules, as far as it is known."""
    snntorch, found = sys.modules.get("snntorch"), {}
    for name, part in network.named_modules():
        describe = getattr(type(part), "describe_neurons", None)
        if describe is not None:
            found[name] = describe(part)
        elif snntorch is not None and isinstance(part, snntorch.SpikingNeuron):
            given = {key: getattr(part, key) for key in SNNTORCH if hasattr(part, key)}
            values = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in given.items()}
            found[name] = {"class": f"snntorch.{type(part).__name__}", **values}
    return found


def neurons_of(layer: str, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of the neurons of a layer, by itself or of all alike; {}: nothing."""
    within = (one for name, one in known.items() if f"{name}.".startswith(f"{layer}."))
    return next(within, known.get("", {}))
