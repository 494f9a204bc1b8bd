"""A sketch as a network of biograd: a stack of layers where it is one, else a circuit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from biograd.circuit.grids import Convolution
from biograd.circuit.projections import Masked, OneToOne
from biograd.circuit.readouts import Readout
from biograd.encoding import Encoding
from biograd.encoding import build as build_encoding
from biograd.errors import CapabilityError, RecipeError
from biograd.interchange.cells import SAME, Array, decay, milliseconds
from biograd.interchange.describe import READS
from biograd.interchange.populations import membrane_of, neuron_of, simulated, stepped
from biograd.interchange.sketch import INPUT, Link, Origin, Reading, Sketch, weighing
from biograd.networks import build as build_network
from biograd.networks.circuit import Circuit, Projection
from biograd.networks.spikes import Membrane
from biograd.networks.spiking import SpikingNetwork
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe, NeuronRecipe, construct
from biograd.substrate.network import Network

Simulator = Literal["torch", "snntorch", "brian2"]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a graph leaves open, see ``import_nir``."""

    dt_ms: float | None = None
    duration_ms: float | None = None
    encoding: EncodingRecipe | None = None
    substrate: Simulator | None = None


def step_length(notes: Mapping[str, Any], choices: Choices) -> float:
    """Return the length of a step in milliseconds.

    Raises:
        RecipeError: neither the caller nor the graph says it.
    """
    noted = choices.encoding.dt_ms if choices.encoding else notes.get("dt_ms")
    found = noted if choices.dt_ms is None else choices.dt_ms
    if not isinstance(found, (int, float)) or not found > 0:
        raise RecipeError(
            "dt_ms: missing: NIR has no time steps: give their length in milliseconds"
        )
    return float(found)


def build(sketch: Sketch, choices: Choices, where: str) -> Network:
    """Return the network of a sketch.

    Args:
        where: what the sketch is of, for messages.

    Raises:
        RecipeError: shapes that do not fit, an encoding that does not, no length of a trial.
        CapabilityError: a substrate that cannot simulate it.
    """
    _check_shapes(sketch)
    encoding = _encoding(sketch, choices, where)
    neuron = _neuron(sketch, where)
    why = _no_stack(sketch, encoding.dt_ms, neuron)
    if why and choices.substrate not in (None, "brian2"):
        raise CapabilityError(f"substrate = {choices.substrate!r}: {why}: take 'brian2'")
    if why:
        network: Network = _circuit(sketch, encoding, neuron)
    else:
        sketch = _as_stack(sketch)
        network = _stack(sketch, encoding, neuron, choices.substrate or "torch")
    network = network.to(_dtype(sketch))
    network.__dict__["origin"] = _origin(sketch, encoding, neuron)
    return network


def _dtype(sketch: Sketch) -> torch.dtype:
    given = (*(one.weight for one in sketch.links), sketch.reading.weight)
    weights = [weight for weight in given if weight is not None]
    small = bool(weights) and all(weight.dtype == np.float32 for weight in weights)
    return torch.float32 if small else torch.float64


def _check_shapes(sketch: Sketch) -> None:
    """Refuse weights that do not fit what they lie between, and populations nothing leads to."""
    units = {INPUT: int(np.prod(sketch.shape))}
    units |= {name: cell.units for name, cell in sketch.cells.items()}
    for one in sketch.links:
        found = _sizes(one, units[one.source])
        if found != (units[one.target], units[one.source]):
            raise RecipeError(
                f"node {one.name!r}: weights from {found[1]} units to {found[0]}, between "
                f"{one.source!r} of {units[one.source]} and {one.target!r} of {units[one.target]}"
            )
        if one.mask is not None and one.weight is not None and one.mask.shape != one.weight.shape:
            raise RecipeError(f"node {one.name!r}: a mask of another shape than its weights")
    read = sketch.reading
    if read.weight is not None and read.weight.shape[1] != units[read.source]:
        raise RecipeError(
            f"node 'readout': weights from {read.weight.shape[1]} units, behind {read.source!r} of "
            f"{units[read.source]}"
        )
    for name in sketch.cells:
        if not sketch.into(name):
            raise RecipeError(f"node {name!r}: nothing leads to it")
        if name != read.source and not any(one.source == name for one in sketch.links):
            raise RecipeError(f"node {name!r}: it leads nowhere")


def _sizes(one: Link, units: int) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a link."""
    if one.weight is None:
        return units, units
    if one.weight.ndim == 1:
        return one.weight.size, one.weight.size
    if one.grid is not None:
        layer = _convolution(one)
        return int(np.prod(layer.target_shape)), int(np.prod(one.grid.shape))
    return one.weight.shape[0], one.weight.shape[1]


# What goes in, and what NIR leaves open


def _encoding(sketch: Sketch, choices: Choices, where: str) -> Encoding:
    """Return how data become what flows into the input.

    That of the caller, else that which the graph notes, else ``rows``: data are courses
    ``[steps, units]``.
    """
    assert sketch.dt_ms is not None
    noted = sketch.notes.get("encoding")
    recipe, shape = choices.encoding, tuple(sketch.shape)
    known = recipe is not None or isinstance(noted, str)
    if recipe is None and isinstance(noted, str):
        try:
            recipe = construct(EncodingRecipe, json.loads(noted), where, "encoding")
        except ValueError as error:
            raise RecipeError(f"{where}: encoding: {error}") from error
        shape = tuple(int(size) for size in np.ravel(sketch.notes.get("datum_shape", shape)))
    if not known and choices.duration_ms is None:
        raise RecipeError(f"{where}: duration_ms: missing: how long is a trial? Or give encoding=")
    recipe = recipe or EncodingRecipe(kind="rows")
    duration = recipe.duration_ms if choices.duration_ms is None else choices.duration_ms
    recipe = dataclasses.replace(recipe, dt_ms=sketch.dt_ms, duration_ms=duration)
    rows = recipe.kind in ("rows", "delta")
    if rows and (choices.encoding is not None or not known):
        units = int(np.prod(sketch.shape)) // (2 if recipe.kind == "delta" else 1)
        shape = (round(duration / sketch.dt_ms), units)
    encoding = build_encoding(recipe, shape)
    if encoding.units != int(np.prod(sketch.shape)):
        raise RecipeError(
            f"{where}: encoding {recipe.kind!r} gives {encoding.units} units, the input has "
            f"{int(np.prod(sketch.shape))}"
        )
    return encoding


def _neuron(sketch: Sketch, where: str) -> NeuronRecipe:
    """Return the surrogate and its slope, as the graph notes them, and the readout."""
    noted = {key: sketch.notes[key] for key in ("surrogate", "slope") if key in sketch.notes}
    through, how = sketch.reading.tau is not None, sketch.reading.how
    kind = next(kind for kind, value in READS.items() if value == (through, how))
    if sketch.reading.tau is not None:
        noted["readout_time_constant_ms"] = milliseconds(sketch.reading.tau)
    return construct(NeuronRecipe, noted | {"readout": kind}, where, "neuron")


def _readout(sketch: Sketch, filtered: Readout) -> nn.Module:
    """Return the linear layer behind what is read."""
    one = sketch.reading
    if one.weight is None:
        return _linear(np.eye(sketch.cells[one.source].units, dtype=_type(sketch)), None)
    left = None if one.tau is None else decay(one.tau, filtered.dt_ms)
    unit, share = weighing(left, one.how, filtered.steps)
    weight = one.weight if one.r == unit or one.tau is None else one.weight * (one.r / unit)
    bias = None if one.bias is None else one.bias.astype(np.float64) * (one.r * share)
    return _linear(weight.astype(one.weight.dtype), bias)


def _type(sketch: Sketch) -> Any:
    return np.float32 if _dtype(sketch) is torch.float32 else np.float64


def _origin(sketch: Sketch, encoding: Encoding, neuron: NeuronRecipe) -> Origin:
    """Return what the network keeps of its graph."""
    read = sketch.reading
    merged = {
        name: cell.w_in
        for name, cell in sketch.cells.items()
        if cell.w_in is not None and membrane_of(cell, encoding.dt_ms, neuron)
    }
    return Origin(
        names=sketch.names,
        plain=frozenset(one.name for one in sketch.links if one.weight is None),
        bare=read.weight is None,
        r=None if _canonical(read, encoding) else read.r,
        w_in={name: w_in for name, w_in in merged.items() if (w_in != 1).any()},
        shapes={INPUT: sketch.shape, **{n: cell.shape for n, cell in sketch.cells.items()}},
    )


def _canonical(read: Reading, encoding: Encoding) -> bool:
    """Return whether the leaky integrator of the readout is the one that biograd would write."""
    if read.tau is None:
        return True
    unit, _ = weighing(decay(read.tau, encoding.dt_ms), read.how, encoding.steps)
    return abs(read.r - unit) <= SAME * unit


# Layers


def _layer(one: Link, units: int, kind: Any) -> nn.Module:
    """Return the layer of a link, its weights set."""
    if one.weight is None or one.weight.ndim == 1:
        made: nn.Module = OneToOne(units)
        weight = (np.ones(units, kind) if one.weight is None else one.weight)[:, None]
    elif one.grid is not None:
        made, weight = _convolution(one), one.weight
    elif one.mask is not None or one.sign != "both":
        mask = np.ones(one.weight.shape, bool) if one.mask is None else one.mask
        made = Masked(torch.from_numpy(mask), one.bias is not None, one.sign)
        weight = one.weight if one.sign == "both" else abs(one.weight)
    else:
        return _linear(one.weight, one.bias)
    _fill(made, weight, one.bias)
    return made


def _convolution(one: Link) -> Convolution:
    assert one.weight is not None and one.grid is not None
    channels, _, side, _ = one.weight.shape
    return Convolution(one.grid.shape, channels, side, one.grid.stride, one.bias is not None)


def _linear(weight: Array, bias: Array | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer, weight, bias)
    return layer


def _fill(layer: nn.Module, weight: Array, bias: Array | None) -> None:
    """Set weight and bias, in double precision until the whole network has its type."""
    layer.double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight)))  # type: ignore[operator]
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias)))  # type: ignore[operator]


# A stack


def _no_stack(sketch: Sketch, dt_ms: float, neuron: NeuronRecipe) -> str:
    """Return why a sketch is no stack of the neurons of ``[neuron]``; "": it is one."""
    source, fed = INPUT, []
    for name, cell in sketch.cells.items():
        if membrane_of(cell, dt_ms, neuron) is None:
            return f"the neurons of {name!r} are not those of [neuron], all alike"
        into = sketch.into(name)
        forward = [one for one in into if one.source == source]
        own = [one for one in into if one.source == name]
        fed.append(bool(own))
        plain = all(_plain(one) for one in into)
        if len(forward) != 1 or len(own) > 1 or len(into) != len(forward) + len(own) or not plain:
            return f"{name!r} is not reached by dense layers from what stands before it alone"
        source = name
    if sketch.reading.source != source:
        return f"not the last population is read, but {sketch.reading.source!r}"
    return "some populations feed back to themselves, some do not" if len(set(fed)) > 1 else ""


def _plain(one: Link) -> bool:
    """Return whether a link is a dense layer without delay."""
    dense = one.weight is not None and one.weight.ndim == 2
    return dense and one.mask is None and one.sign == "both" and not one.delay


def _as_stack(sketch: Sketch) -> Sketch:
    """Return a sketch with the names that describe a stack."""
    cells = {name: f"blocks_{index}" for index, name in enumerate(sketch.cells)}
    links = {
        one.name: f"{cells[one.target]}_{'recurrent' if one.source == one.target else 'synapse'}"
        for one in sketch.links
    }
    return sketch.renamed(cells, links)


def _stack(
    sketch: Sketch, encoding: Encoding, neuron: NeuronRecipe, substrate: Simulator
) -> SpikingNetwork:
    """Return a stack; each block has its own constants."""
    names, dt_ms = list(sketch.cells), encoding.dt_ms
    membranes: list[Membrane] = []
    for cell in sketch.cells.values():
        found = membrane_of(cell, dt_ms, neuron)
        assert found is not None
        membranes.append(found)
    own = [neuron_of(c, m, neuron) for c, m in zip(sketch.cells.values(), membranes, strict=True)]
    recurrent = any(one.source == one.target for one in sketch.links)
    readout = {
        "readout": neuron.readout,
        "readout_time_constant_ms": neuron.readout_time_constant_ms,
    }
    recipe = ModelRecipe(
        network=NetworkRecipe(
            substrate=substrate,
            kind="spiking",
            hidden=tuple(cell.units for cell in sketch.cells.values()),
            recurrent=recurrent,
            dtype="float32" if _dtype(sketch) is torch.float32 else "float64",
        ),
        neuron=construct(NeuronRecipe, own[0] | readout, "graph", "neuron"),
        encoding=encoding.recipe,
    )
    classes = sketch.reading.weight
    network = build_network(recipe, encoding.shape, 1 if classes is None else len(classes))
    assert isinstance(network, SpikingNetwork)
    for name, block, membrane in zip(names, network.blocks, membranes, strict=True):
        assert isinstance(block, nn.ModuleDict)
        for one in sketch.into(name):
            block[one.name.rsplit("_", 1)[1]] = _layer(one, 0, None)
        units = sketch.cells[name].units
        activity = stepped(membrane, substrate, units, encoding.steps, dt_ms, recurrent)
        block["activity"] = activity
    network.readout = _readout(sketch, network.filtered)  # type: ignore[assignment]
    return network


# A circuit


def _circuit(sketch: Sketch, encoding: Encoding, neuron: NeuronRecipe) -> Circuit:
    """Return a circuit of Brian2 populations."""
    steps, dt_ms = encoding.steps, encoding.dt_ms
    cells = {n: simulated(cell, n, steps, dt_ms, neuron) for n, cell in sketch.cells.items()}
    places = {INPUT: -1} | {name: place for place, name in enumerate(sketch.cells)}
    ordered = sorted(
        sketch.links,
        key=lambda one: (places[one.target], sketch.back(one), places[one.source]),
    )
    units = {INPUT: encoding.units} | {name: cell.units for name, cell in sketch.cells.items()}
    layers = {one.name: _layer(one, units[one.source], _type(sketch)) for one in ordered}
    wiring = []
    for one in ordered:
        variable = cells[one.target].model.port
        lag = _lag(one, encoding) + sketch.back(one)
        wiring.append(Projection(one.name, one.source, one.target, variable, lag))
    filtered = Readout.of(neuron, steps, dt_ms)
    readout = _readout(sketch, filtered)
    return Circuit(cells, layers, wiring, encoding, readout, filtered, sketch.reading.source)


def _lag(one: Link, encoding: Encoding) -> int:
    """Return a delay in steps."""
    steps = milliseconds(one.delay) / encoding.dt_ms
    if abs(steps - round(steps)) > 1e-9 * max(1, steps) or steps < 0:
        raise RecipeError(
            f"node {one.name!r}: a delay of {milliseconds(one.delay):g} ms is no multiple of "
            f"dt_ms = {encoding.dt_ms:g}"
        )
    if steps >= encoding.steps:
        raise RecipeError(
            f"node {one.name!r}: nothing arrives within a trial of {encoding.duration_ms:g} ms"
        )
    return round(steps)
