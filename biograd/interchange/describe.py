"""A network of biograd as a sketch; what NIR has no node for is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biograd.circuit.grids import Convolution
from biograd.circuit.projections import Masked, OneToOne
from biograd.circuit.readouts import Readout
from biograd.errors import CapabilityError
from biograd.interchange.cells import Array, Cell, decay
from biograd.interchange.populations import cell_of
from biograd.interchange.sketch import INPUT, Grid, Link, Origin, Read, Reading, Sketch, weighing
from biograd.networks.circuit import Circuit, Projection
from biograd.networks.spiking import SpikingNetwork
from biograd.substrate.effective import effective_parameters
from biograd.substrate.network import Network

READS: dict[str, tuple[bool, Read]] = {
    "membrane": (True, "mean"),
    "filtered_rate": (True, "last"),
    "rate": (False, "sum"),
    "potential": (False, "mean"),
}
"""Kinds of readout: whether through a leaky integrator, and what of its course is read."""


def describe(network: nn.Module) -> Sketch:
    """Return the sketch of a network.

    Raises:
        CapabilityError: it has a part for which NIR has no node.
    """
    if isinstance(network, SpikingNetwork):
        return _stack(network)
    if isinstance(network, Circuit):
        return _circuit(network)
    raise CapabilityError(
        f"{type(network).__name__}: NIR describes populations in time: a spiking network or a "
        "circuit of biograd.build, no rate network, no event-driven one, no module of your own"
    )


def _stack(network: SpikingNetwork) -> Sketch:
    cells, links, source = {}, [], INPUT
    for index, block in enumerate(network.blocks):
        assert isinstance(block, nn.ModuleDict) and network.encoding is not None
        name, synapse = f"blocks_{index}", block["synapse"]
        one = link(f"{name}_synapse", synapse, source, name)
        assert one.weight is not None
        links.append(one)
        cells[name] = _named(name, network, block["activity"], len(one.weight))
        if "recurrent" in block:
            links.append(link(f"{name}_recurrent", block["recurrent"], name, name))
        source = name
    return _finished(network, cells, links, source, network.filtered)


def _named(name: str, network: Network, population: nn.Module, units: int) -> Cell:
    """Return the cell of a population; messages say which one it is."""
    assert network.encoding is not None
    try:
        cell = cell_of(population, units, network.encoding.dt_ms)
    except CapabilityError as error:
        text = str(error)
        where = name.replace("_", ".", 1)
        text = text.removeprefix("population: ")
        raise CapabilityError(text if f".{name}:" in text else f"{where}: {text}") from error
    w_in = _origin(network).w_in.get(name)
    if w_in is None or cell.w_in is None:
        return cell
    return dataclasses.replace(cell, r=cell.r * cell.w_in / w_in, w_in=w_in)


def _circuit(network: Circuit) -> Sketch:
    assert network.encoding is not None
    links = [_projected(network, one) for one in network.wiring]
    cells = {}
    for name in network.order:
        layer = network.layer(name)
        cell = _named(name, network, layer, layer.units)
        shapes = {_target(network, one) for one in links if one.target == name}
        shape = _origin(network).shapes.get(name, shapes.pop() if len(shapes) == 1 else None)
        cells[name] = cell if shape is None else dataclasses.replace(cell, shape=shape)
    return _finished(network, cells, links, network.output, network.filtered)


def _target(network: Circuit, one: Link) -> tuple[int, ...] | None:
    layer = network.projections[one.name]
    return layer.target_shape if isinstance(layer, Convolution) else None


def _projected(network: Circuit, one: Projection) -> Link:
    assert network.encoding is not None
    layer, dt_ms = network.projections[one.name], network.encoding.dt_ms
    steps = one.lag - network.back(one)
    found = link(one.name, layer, one.source, one.target)
    if one.name in _origin(network).plain and np.all(found.weight == 1):
        found = dataclasses.replace(found, weight=None)
    return dataclasses.replace(found, delay=steps * dt_ms / 1000)


def link(name: str, layer: nn.Module, source: str, target: str) -> Link:
    """Return a synaptic layer as a link, with what is folded into its weights.

    Raises:
        CapabilityError: NIR has no node for such a layer.
    """
    if isinstance(layer, Masked):
        return _masked(name, layer, source, target)
    if isinstance(layer, OneToOne) and layer.bias is None and layer.sign == "both":
        return Link(name, source, target, np.ravel(np.asarray(array(layer.weight))))
    if isinstance(layer, Convolution) and len(layer.shape) == 3:
        channels, height, width = layer.shape
        grid = Grid((channels, height, width), layer.stride, layer.padding)
        return Link(name, source, target, array(layer.weight), array(layer.bias), grid=grid)
    if type(layer) is not nn.Linear:
        raise CapabilityError(f"{name}: NIR has no node for a layer {layer}")
    weight, bias = effective_parameters(layer)
    return Link(name, source, target, array(weight), array(bias))


def _masked(name: str, layer: Masked, source: str, target: str) -> Link:
    weight, mask = array(layer.weight), np.asarray(array(layer.mask))
    assert weight is not None
    if layer.sign != "both":
        weight = abs(weight) if layer.sign == "excitatory" else -abs(weight)
    weight = weight * mask
    single = layer.sign == "both" and layer.bias is None and mask.shape[0] == mask.shape[1]
    if single and np.array_equal(mask, np.eye(len(mask), dtype=bool)):
        return Link(name, source, target, np.diag(weight).copy())
    kept = None if mask.all() else mask
    bias = array(layer.bias)
    return Link(name, source, target, weight, bias, mask=kept, sign=layer.sign)


def _finished(
    network: Network, cells: dict[str, Cell], links: list[Link], source: str, filtered: Readout
) -> Sketch:
    """Return a sketch with what is read, what goes in and what is noted."""
    encoding, origin = network.encoding, _origin(network)
    assert encoding is not None
    grids = [one.grid.shape for one in links if one.source == INPUT and one.grid]
    readout = getattr(network, "readout")  # noqa: B009 - torch's type of a submodule is wide
    return Sketch(
        shape=origin.shapes.get(INPUT, grids[0] if grids else (encoding.units,)),
        cells=cells,
        links=tuple(links),
        reading=_reading(source, readout, filtered, origin),
        dt_ms=encoding.dt_ms,
        names=origin.names,
        notes=_notes(network),
    )


def _reading(source: str, readout: nn.Module, filtered: Readout, origin: Origin) -> Reading:
    """Return what is read of the last population."""
    if filtered.kind not in READS:
        raise CapabilityError(
            f"neuron.readout = {filtered.kind!r}: NIR cannot express it; take 'membrane', 'rate', "
            "'filtered_rate' or 'potential'"
        )
    through, how = READS[filtered.kind]
    whole = link("readout", readout, source, "")
    tau = filtered.time_constant_ms / 1000 if through else None
    kept = None if tau is None else decay(tau, filtered.dt_ms)
    unit, share = weighing(kept, how, filtered.steps)
    r = (unit if origin.r is None else origin.r) if through else 1.0
    weight, bias = whole.weight, whole.bias
    assert weight is not None
    if origin.bare and bias is None and np.array_equal(weight, np.eye(len(weight))):
        return Reading(source, None, how=how)
    if r != unit:
        weight = weight * (unit / r)
    if bias is not None:
        bias = bias.astype(np.float64) / (r * share)
    return Reading(source, weight, bias, tau, r, how)


def _notes(network: Network) -> dict[str, Any]:
    """Return what NIR has no place for and which changes nothing of the spikes."""
    encoding = network.encoding
    assert encoding is not None
    notes: dict[str, Any] = {
        "encoding": json.dumps(dataclasses.asdict(encoding.recipe)),
        "datum_shape": np.array(encoding.shape),
    }
    for module in network.modules():
        source = getattr(module, "membrane", None) or module
        if hasattr(source, "surrogate") and hasattr(source, "slope"):
            notes |= {"surrogate": source.surrogate, "slope": source.slope}
            break
    return notes


def _origin(network: nn.Module) -> Origin:
    found = getattr(network, "origin", None)
    return found if isinstance(found, Origin) else Origin()


def array(values: Tensor | None) -> Array | None:
    """Return a tensor as an array of its type."""
    if values is None:
        return None
    with torch.no_grad():
        return np.array(values.detach().cpu().numpy())
