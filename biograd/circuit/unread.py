"""Which keys of a model's recipe nothing reads, beside the others that it has.

A key that is given and not read is refused, since whoever wrote it expects it to act; what a recipe
merely has by default is nobody's wish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from biograd.encoding import ENCODINGS
from biograd.errors import RecipeError
from biograd.recipes import (
    DelayRecipe,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
    ProjectionRecipe,
)
from biograd.recipes.toml import at

OUT = "take it out"
NOUNS = {
    "rate": "on a rate network",
    "spiking": "on a spiking network",
    "local_mixer": "on a LocalMixer",
    "circuit": "on a circuit, which is made of [populations] and [projections]",
}
CONVOLVED = ("kernel", "stride", "pooling", "pool")
LAYERED = {"hidden", *CONVOLVED, "channels", "recurrent", "residual", "normalisation", "dropout"}
TAKES = {
    "rate": LAYERED | {"activation", "label_inputs"},
    "spiking": LAYERED | {"substrate", "readout", "readout_time_constant_ms", "delays"},
    "circuit": {"substrate", "readout", "readout_time_constant_ms"},
    "local_mixer": set(),
}
"""Keys of ``[network]`` that each kind of network takes, beside kind, gain and dtype."""
IN_LAYERS = ("activation", "gain", "normalisation", "dropout", "recurrent", "residual")
FILTERED = ("membrane", "filtered_rate")
"""Readouts with a time constant."""
OWN_KEYS = {
    "density": ("masked", "sparse"),
    **dict.fromkeys(("channels", "kernel", "stride", "padding"), ("convolution",)),
}
"""Keys of a projection and the kinds that read them."""
SURROGATE = ("surrogate", "slope")
"""Keys of ``[neuron]`` that populations of equations read."""
NAMED = ("units", "neuron", "normalisation", "dropout")
"""Keys of a population that those of equations do not read, but for units."""
Idle = Iterator[tuple[str, str]]


def in_time(network: NetworkRecipe) -> bool:
    """Return whether a network has time."""
    return network.kind in ("spiking", "circuit") or (network.kind == "rate" and network.recurrent)


def unread(recipe: ModelRecipe) -> dict[str, str]:
    """Return the keys of the network that nothing reads, dotted; of a whole table its name alone.

    >>> unread(ModelRecipe())["network.readout"]
    'on a rate network: take it out'
    """
    parts = (_network, _mixer, _neuron, _populations, _projections, _encoding)
    return {key: reason for part in parts for key, reason in part(recipe)}


def check_changed(recipe: ModelRecipe) -> None:
    """Refuse a key that nothing reads and that has another value than its default.

    Raises:
        RecipeError: with the key.
    """
    for key, reason in unread(recipe).items():
        if at(recipe, key) != _left_out(recipe, key):
            raise RecipeError(f"{key}: has no effect {reason}")


def _left_out(recipe: ModelRecipe, key: str) -> Any:
    """Return the value that a key has, or a whole table, where nobody gives it."""
    table, _, name = key.rpartition(".")
    if "." in table:  # populations and projections: a plain recipe has none
        return default_of(type(at(recipe, table)), name)
    plain = ModelRecipe()
    if table and not hasattr(getattr(plain, table), name):  # of another kind of neuron
        return None
    return at(plain, key)


def default_of(kind: type[Any], name: str) -> Any:
    """Return the default of a field of a dataclass."""
    field = next(one for one in dataclasses.fields(kind) if one.name == name)
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _network(recipe: ModelRecipe) -> Idle:
    network = recipe.network
    takes = TAKES[network.kind] | {"kind", "gain", "dtype"}
    for name in (field.name for field in dataclasses.fields(network)):
        if name == "substrate" and not in_time(network) and network.substrate != "torch":
            yield "network.substrate", "without time: it runs on 'torch'"
        elif name not in takes and name != "substrate":
            yield f"network.{name}", f"{NOUNS[network.kind]}: {OUT}"
    if network.delays is not None:
        for key, reason in _delays(network.delays, "network.delays"):
            yield f"network.{key}", reason
    if network.kind in ("rate", "spiking"):
        yield from _layers(network)
    if network.kind in ("spiking", "circuit") and network.readout not in FILTERED:
        reason = f"with network.readout = {network.readout!r}: {OUT}"
        yield "network.readout_time_constant_ms", reason


def _layers(network: NetworkRecipe) -> Idle:
    takes = TAKES[network.kind] | {"gain"}
    if not network.hidden and not network.channels:
        for name in IN_LAYERS:
            if name in takes:
                yield f"network.{name}", f"without hidden layers: {OUT}"
    elif not network.hidden:
        yield "network.residual", f"without dense layers (network.hidden): {OUT}"
        if network.kind == "spiking":
            yield "network.delays", f"without dense layers (network.hidden): {OUT}"
    if not network.channels:
        for name in CONVOLVED:
            yield f"network.{name}", "without network.channels"
    elif network.pooling == 1:
        yield "network.pool", "without network.pooling"


def _mixer(recipe: ModelRecipe) -> Idle:
    if recipe.network.kind != "local_mixer":
        yield "mixer", "without network.kind = 'local_mixer'"


def _neuron(recipe: ModelRecipe) -> Idle:
    kind, named = recipe.network.kind, dataclasses.fields(recipe.neuron)
    if kind in ("spiking", "circuit"):
        made = [recipe.population] if kind == "spiking" else [*recipe.populations.values()]
        used = [one for one in made if not one.equations and not one.neuron]
        if used or not made:
            return
        if any(one.equations for one in made):
            where = "the equations" if kind == "circuit" else "[population]"
            for field in named:
                if field.name not in SURROGATE:
                    yield f"neuron.{field.name}", f"on neurons of {where}: write it there"
            return
        yield "neuron", f"where every population has a neuron of its own: {OUT}"
        return
    yield "neuron", f"{NOUNS[kind]}: {OUT}"


def _populations(recipe: ModelRecipe) -> Idle:
    network = recipe.network
    if network.kind != "circuit":
        yield "populations", "without network.kind = 'circuit'"
    if network.kind == "circuit":
        yield "population", "on a circuit: it has [populations.NAME]"
    elif not recipe.population.equations:
        yield "population", "without population.equations"
    else:
        yield "population.units", "beside network.hidden, which says how many neurons"
        for name in NAMED[1:]:
            yield f"population.{name}", f"on a population of equations: {OUT}"
    for name, one in _named(recipe.populations):
        for field in dataclasses.fields(PopulationRecipe):
            key = f"populations.{name}.{field.name}"
            if one.equations and field.name in NAMED[1:]:
                yield key, "on a population of equations"
            if not one.equations and field.name not in (*NAMED, "equations"):
                yield key, f"without populations.{name}.equations"


def _named(parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the parts whose names can be part of a key; others are refused by their names."""
    return [(name, one) for name, one in parts.items() if "." not in name]


def _projections(recipe: ModelRecipe) -> Idle:
    if recipe.network.kind != "circuit":
        yield "projections", "without network.kind = 'circuit'"
    for name, one in _named(recipe.projections):
        for key, reason in _projection(one, f"projections.{name}"):
            yield f"projections.{name}.{key}", reason


def _projection(one: ProjectionRecipe, where: str) -> Idle:
    for key, kinds in OWN_KEYS.items():
        if one.kind not in kinds:
            ways = " or ".join(map(repr, kinds))
            yield key, f"on kind = {one.kind!r}: {OUT}, or write kind = {ways}"
    if one.delays is not None:
        yield from _delays(one.delays, f"{where}.delays")
    if one.kind == "skip":
        for key in ("variable", "sign", "bias", "delays"):
            yield key, "on kind = 'skip'"
    if one.pooling == 1:
        yield "pool", f"without {where}.pooling"


def _delays(recipe: DelayRecipe, where: str) -> Idle:
    """Yield the keys below a table of delays that its way of learning does not read."""
    if recipe.learned != "gaussian":
        for key in ("width_ms", "narrowing"):
            yield f"delays.{key}", f"without {where}.learned = 'gaussian': {OUT}"
    if recipe.learned == "none":
        yield "delays.pace", f"without {where}.learned: {OUT}"


def _encoding(recipe: ModelRecipe) -> Idle:
    encoding = recipe.encoding
    if not in_time(recipe.network):
        for field in dataclasses.fields(encoding):
            yield f"encoding.{field.name}", f"on a network without time: {OUT}"
        return
    reads = ENCODINGS.find(encoding.kind, "encoding.kind").reads
    if reads is not None:
        for field in dataclasses.fields(encoding):
            if field.name not in {*reads, "kind", "dt_ms", "duration_ms", "settings"}:
                reason = f"with encoding.kind = {encoding.kind!r}: {OUT}"
                yield f"encoding.{field.name}", reason
