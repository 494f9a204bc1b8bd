"""Networks behind one contract: torch rate networks, torch, snnTorch and Brian2 spiking networks.

``build`` makes a network from a recipe, ``substrate`` the runner of its forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from biograd import encoding
from biograd.contracts import Substrate
from biograd.errors import CapabilityError, RecipeError
from biograd.networks.event_driven import EventNetwork
from biograd.networks.local_mixer import LocalMixer
from biograd.networks.network import Network, initialise
from biograd.networks.rate import RateNetwork, RecurrentRateNetwork
from biograd.networks.spiking import SpikingNetwork
from biograd.networks.substrate import Sites, TorchSubstrate
from biograd.recipes import ModelRecipe, PopulationRecipe, load_model

__all__ = [
    "EventNetwork",
    "LocalMixer",
    "Network",
    "RateNetwork",
    "RecurrentRateNetwork",
    "Sites",
    "SpikingNetwork",
    "TorchSubstrate",
    "build",
    "substrate",
]


def build(
    model: str | Path | ModelRecipe | nn.Module,
    inputs: int | Sequence[int],
    classes: int,
    seed: int = 0,
) -> nn.Module:
    """Return the network of a recipe, its weights drawn from ``seed``.

    Args:
        model: a shipped name, a path to a TOML file, a recipe, or a module, returned as it is.
        inputs: number of features of a datum, or its shape ``(C, H, W)``.
        classes: number of outputs.

    Raises:
        RecipeError: no such recipe, or its parts do not fit together.

    >>> network = build("ann", inputs=64, classes=10)
    >>> [site.name for site in network.sites]
    ['blocks.0.synapse', 'blocks.1.synapse', 'readout']
    """
    if isinstance(model, nn.Module):
        return model
    recipe = model if isinstance(model, ModelRecipe) else load_model(model)
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    network = _assemble(recipe, shape, classes)
    initialise(network, seed, recipe.network.gain, "readout")
    return network.to(getattr(torch, recipe.network.dtype))


def _assemble(recipe: ModelRecipe, shape: tuple[int, ...], classes: int) -> Network:
    network = recipe.network
    _check(recipe, shape)
    if network.kind == "local_mixer":
        return LocalMixer(recipe.mixer, shape, classes)
    if network.kind == "rate" and not network.recurrent:
        return RateNetwork(network, shape, classes)
    encoded = encoding.build(recipe.encoding, shape)
    if network.kind == "rate":
        return RecurrentRateNetwork(network, encoded, classes)
    if network.kind == "circuit":
        from biograd.networks.assembly import build_circuit

        return build_circuit(recipe, encoded, classes)
    if recipe.neuron.method == "event":
        return EventNetwork(network, recipe.neuron, encoded, classes)
    return SpikingNetwork(network, recipe.neuron, encoded, classes, recipe.population)


def _check(recipe: ModelRecipe, shape: tuple[int, ...]) -> None:
    network = recipe.network
    if network.kind == "circuit":
        if network.substrate != "brian2":
            raise RecipeError("network.kind = 'circuit': needs network.substrate = 'brian2'")
        return
    if recipe.populations or recipe.projections:
        raise RecipeError("populations, projections: need network.kind = 'circuit'")
    if network.kind != "spiking" and network.substrate != "torch":
        raise RecipeError(
            f"network.substrate = {network.substrate!r}: a rate network runs on 'torch'"
        )
    if network.kind == "local_mixer" and (network.recurrent or network.activation != "relu"):
        raise RecipeError(
            "network.recurrent, network.activation: a LocalMixer is feed-forward, of ReLU units"
        )
    neuron = recipe.neuron
    if (
        network.substrate == "snntorch"
        and network.kind == "spiking"
        and (neuron.synaptic_time_constant_ms and neuron.reset == "zero")
    ):
        raise RecipeError(
            "neuron.reset = 'zero' with a synaptic filter: snnTorch's Synaptic also resets the "
            "synaptic current; use reset = 'subtract' or network.substrate = 'torch'"
        )
    if recipe.population != PopulationRecipe() and not recipe.population.equations:
        raise RecipeError("population.equations: missing, but [population] says something else")
    if recipe.population.equations and (network.kind, network.substrate) != ("spiking", "brian2"):
        raise RecipeError(
            "population.equations: need network.kind = 'spiking', network.substrate = 'brian2'"
        )
    if neuron.method == "event" and (network.kind, network.substrate) != ("spiking", "torch"):
        raise RecipeError(
            "neuron.method = 'event': needs network.kind = 'spiking', network.substrate = 'torch'"
        )
    if network.channels and (network.kind != "rate" or network.recurrent):
        raise RecipeError("network.channels: convolutions need a feed-forward rate network")
    if network.channels and len(shape) != 3:
        raise RecipeError(f"network.channels: convolutions need data (C, H, W), not {shape}")
    plain = network.kind != "rate" or network.recurrent
    if network.label_inputs and (plain or network.channels):
        raise RecipeError("network.label_inputs: only for dense feed-forward rate networks")
    if plain and (network.dropout or network.normalisation != "none" or network.residual):
        raise RecipeError(
            "network.dropout, network.normalisation, network.residual: only for feed-forward rate "
            "networks"
        )


def substrate(network: nn.Module, sites: Sites | None = None) -> Substrate:
    """Return who runs the forward passes of ``network``: its own substrate, else torch.

    Raises:
        CapabilityError: ``sites`` are given for a network whose own substrate has its own.
    """
    make = getattr(network, "make_substrate", None)
    if not callable(make):
        return TorchSubstrate(network, sites)
    if sites is not None:
        raise CapabilityError(f"{type(network).__name__} names its own sites: give none")
    return make()
