"""Networks behind one contract: torch rate networks, torch, snnTorch and Brian2 spiking networks.

``build`` makes a network from a recipe, ``substrate`` the runner of its forward passes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from biograd import encoding
from biograd.contracts import Substrate
from biograd.errors import CapabilityError, RecipeError
from biograd.networks.event_driven import EventNetwork
from biograd.networks.local_mixer import LocalMixer
from biograd.networks.network import Network, initialise
from biograd.networks.neuron_checks import check_no_constants
from biograd.networks.rate import RateNetwork, RecurrentRateNetwork
from biograd.networks.spiking import SpikingNetwork
from biograd.networks.substrate import Sites, TorchSubstrate
from biograd.recipes import (
    Count,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
    load_model,
    validate,
)

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

SIZES = {
    "circuit": "populations.NAME.units or projections.NAME.channels",
    "local_mixer": "mixer.channels or mixer.blocks",
    "spiking": "network.hidden",
}
"""Keys that make a network large, by its kind."""
OF_CIRCUITS = ("substrate", "kind", "gain", "dtype")
"""Keys of ``[network]`` that a circuit reads."""


def build(
    model: str | Path | ModelRecipe | nn.Module,
    inputs: Count | Sequence[Count],
    classes: Count,
    seed: int = 0,
) -> nn.Module:
    """Return the network of a recipe, its weights drawn from ``seed``.

    Args:
        model: a shipped name, a path to a TOML file, a recipe, or a module, returned as it is.
        inputs: number of features of a datum, or its shape ``(C, H, W)``.
        classes: number of outputs.

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
    with _in_memory(recipe.network.kind):
        network = _assemble(recipe, shape, classes)
        initialise(network, seed, recipe.network.gain, "readout")
        return network.to(getattr(torch, recipe.network.dtype))


@contextmanager
def _in_memory(kind: str) -> Iterator[None]:
    """Say in one line that a network is too large."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        short = re.search("memory|alloc|overflow", str(error), re.IGNORECASE)
        if isinstance(error, (RuntimeError, TypeError)) and not short:
            raise
        raise RecipeError(
            f"network.kind = {kind!r}: the network is too large for this machine's memory: lower "
            f"{SIZES.get(kind, 'network.hidden or network.channels')}"
        ) from error


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
        _check_circuit(recipe)
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
    if recipe.population.units:
        raise RecipeError("population.units: network.hidden says how many neurons: take it out")
    if recipe.population.equations and (network.kind, network.substrate) != ("spiking", "brian2"):
        raise RecipeError(
            "population.equations: need network.kind = 'spiking', network.substrate = 'brian2'"
        )
    if recipe.population.equations:
        check_no_constants(neuron, "[population]")
    if neuron.method == "event" and (network.kind, network.substrate) != ("spiking", "torch"):
        raise RecipeError(
            "neuron.method = 'event': needs network.kind = 'spiking', network.substrate = 'torch'"
        )
    if network.kind == "spiking" and network.activation != NetworkRecipe.activation:
        raise RecipeError("network.activation: has no effect on a spiking network: take it out")
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


def _check_circuit(recipe: ModelRecipe) -> None:
    """Refuse what a circuit does not have: its shape stands in populations and projections."""
    network, plain = recipe.network, NetworkRecipe()
    if network.substrate != "brian2":
        raise RecipeError("network.kind = 'circuit': needs network.substrate = 'brian2'")
    for field in dataclasses.fields(NetworkRecipe):
        key = field.name
        if key not in OF_CIRCUITS and getattr(network, key) != getattr(plain, key):
            raise RecipeError(
                f"network.{key}: has no effect on a circuit, which is made of [populations] and "
                "[projections]: take it out"
            )
    if recipe.population != PopulationRecipe():
        raise RecipeError("[population]: a circuit has [populations.NAME]: take it out, or name it")
    if all(population.equations for population in recipe.populations.values()):
        check_no_constants(recipe.neuron, "[populations]")
    if recipe.neuron.method == "event":
        raise RecipeError("neuron.method = 'event': needs network.substrate = 'torch'")


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
