"""Networks behind one contract: populations and projections on torch, snnTorch and Brian2.

``build`` makes a network from a recipe, ``substrate`` the runner of its forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from biograd import encoding
from biograd.circuit.assembly import build_circuit
from biograd.circuit.circuit import Circuit
from biograd.circuit.local_mixer import LocalMixer
from biograd.circuit.sugar import Layers, check_shape
from biograd.circuit.unread import check_changed, in_time
from biograd.contracts import Substrate
from biograd.errors import CapabilityError, RecipeError, fitting
from biograd.events.event_network import EventNetwork
from biograd.neurons import EventDriven
from biograd.recipes import (
    Count,
    ModelRecipe,
    PopulationRecipe,
    load_model,
    validate,
)
from biograd.substrate.network import Network, initialise
from biograd.substrate.return_values import Outputs
from biograd.substrate.sites import Sites
from biograd.substrate.torch_substrate import TorchSubstrate

__all__ = [
    "Circuit",
    "EventNetwork",
    "LocalMixer",
    "Network",
    "Sites",
    "TorchSubstrate",
    "build",
    "substrate",
]

SIZES = {
    "circuit": "populations.NAME.units or projections.NAME.channels",
    "local_mixer": "mixer.channels or mixer.blocks",
    "spiking": "network.hidden",
}
"""Keys that make a network large, by its kind."""


def build(
    model: str | Path | ModelRecipe | nn.Module,
    inputs: Count | Sequence[Count],
    classes: Count,
    seed: int = 0,
    timed: bool = False,
) -> nn.Module:
    """Return the network of a recipe, its weights drawn from ``seed``.

    Args:
        model: a shipped name, a path to a TOML file, a recipe, or a module, returned as it is.
        inputs: number of features of a datum, or its shape ``(C, H, W)``.
        classes: number of outputs.
        timed: whether there is an output in every step, ``[B, T, outputs]``.

    Raises:
        RecipeError: no such recipe, its parts do not fit together, or not into memory.

    >>> network = build("ann", inputs=64, classes=10)
    >>> [site.name for site in network.sites]
    ['blocks.0.synapse', 'blocks.1.synapse', 'readout']
    """
    if isinstance(model, nn.Module):
        return model
    validate(build, {"inputs": inputs, "classes": classes, "seed": seed})
    recipe = model if isinstance(model, ModelRecipe) else load_model(model)
    shape = tuple(inputs) if isinstance(inputs, Sequence) else (int(inputs),)
    kind = recipe.network.kind
    lower = SIZES.get(kind, "network.hidden or network.channels")
    with fitting(f"network.kind = {kind!r}: the network is too large", lower):
        network = _assemble(recipe, shape, classes, timed)
        initialise(network, seed, recipe.network.gain, "readout")
        return network.to(getattr(torch, recipe.network.dtype))


def _assemble(recipe: ModelRecipe, shape: tuple[int, ...], outputs: int, timed: bool) -> Network:
    network = recipe.network
    static = not in_time(network)
    if recipe.module.source:
        raise RecipeError(
            f"{recipe.module.source}: is a module of yours: make it and attach a rule, or train it "
            "by biograd.train"
        )
    _check(recipe)
    if static and timed:
        raise RecipeError(
            "an output in every step needs a network in time: network.kind = 'spiking' or "
            "'circuit', or network.recurrent = true"
        )
    if network.kind == "local_mixer":
        return LocalMixer(recipe.mixer, shape, outputs)
    if static:
        return Layers(recipe, shape, None, outputs, timed).circuit()
    encoded = encoding.build(recipe.encoding, shape)
    if network.kind == "circuit":
        return build_circuit(recipe, encoded, outputs, timed)
    if network.kind == "spiking" and isinstance(recipe.neuron, EventDriven):
        if timed:
            raise RecipeError("neuron.kind = 'event_driven': no output in every step")
        return EventNetwork(network, recipe.neuron, encoded, outputs)
    return Layers(recipe, shape, encoded, outputs, timed).circuit()


def _check(recipe: ModelRecipe) -> None:
    """Refuse what this kind of network would not look at."""
    network, neuron = recipe.network, recipe.neuron
    check_shape(network)
    if isinstance(neuron, EventDriven) and (network.kind, network.substrate) != (
        "spiking",
        "torch",
    ):
        raise RecipeError(
            "neuron.kind = 'event_driven': needs network.kind = 'spiking', network.substrate = "
            "'torch'"
        )
    circuit = network.kind == "circuit"
    if not circuit and (recipe.populations or recipe.projections):
        raise RecipeError("populations, projections: need network.kind = 'circuit'")
    if circuit and recipe.population != PopulationRecipe():
        raise RecipeError("[population]: a circuit has [populations.NAME]: take it out, or name it")
    if recipe.population != PopulationRecipe() and not recipe.population.equations:
        raise RecipeError("population.equations: missing, but [population] says something else")
    if recipe.population.equations and (network.kind, network.substrate) != ("spiking", "brian2"):
        raise RecipeError(
            "population.equations: need network.kind = 'spiking', network.substrate = 'brian2'"
        )
    check_changed(recipe)


def substrate(
    network: nn.Module, sites: Sites | None = None, outputs: Outputs | None = None
) -> Substrate:
    """Return who runs the forward passes of ``network``: its own substrate, else torch.

    Raises:
        CapabilityError: ``sites`` are given for a network whose own substrate has its own, or
            ``outputs`` for a network of biograd, which returns nothing else.
    """
    if outputs is not None and isinstance(network, Network):
        raise CapabilityError(
            f"outputs: {type(network).__name__} returns its outputs alone, [B, ...]: leave it out"
        )
    make = getattr(network, "make_substrate", None)
    if not callable(make):
        return TorchSubstrate(network, sites, outputs)
    if sites is not None:
        raise CapabilityError(f"{type(network).__name__} names its own sites: give none")
    return make()
