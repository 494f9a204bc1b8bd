"""A parsed graph as a network of biograd."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from biograd.checking import construct
from biograd.circuit.circuit import Circuit
from biograd.circuit.delays import Delayed
from biograd.circuit.graph import INPUT, Block, Projection
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.projections import Masked, OneToOne
from biograd.circuit.readouts import LeakyReadout, Readout
from biograd.encoding import Encoding
from biograd.encoding import build as build_encoding
from biograd.errors import CapabilityError, RecipeError, brief
from biograd.interchange.nir_neuron import SAME, Array, milliseconds, neuron_of, settled
from biograd.interchange.nodes import SIGNS
from biograd.interchange.parse import Parser
from biograd.interchange.parts import Connection, PopulationNodes, plain
from biograd.interchange.weighing import READS, Origin, weighing
from biograd.recipes import DelayRecipe, EncodingRecipe, PopulationRecipe
from biograd.simulators.gathered import GatheringLinear
from biograd.simulators.population import Population, Simulator
from biograd.substrate.normalisation import Dropout


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
    if not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise RecipeError(
            "dt_ms: missing: NIR has no time steps: give their length in milliseconds (snnTorch "
            "writes graphs for steps of 0.1)"
        )
    return float(found)


def build(parsed: Parser, choices: Choices, where: str) -> Circuit:
    """Return the network of a parsed graph.

    Args:
        where: what the graph is called in messages.

    Raises:
        RecipeError: shapes that do not fit, an encoding that does not, no length of a trial.
        CapabilityError: a substrate that cannot simulate it.
    """
    return _Builder(parsed, choices, where).circuit()


class _Builder:
    def __init__(self, parsed: Parser, choices: Choices, where: str) -> None:
        self.parsed, self.where = parsed, where
        self.encoding = _encoding(parsed, choices, where)
        self.simulator: Simulator = choices.substrate or "torch"
        self.places = {INPUT: -1} | {path: n for n, path in enumerate(parsed.populations)}
        self.weights: dict[str, Array] = {}
        self.learned: dict[str, str] = {}
        self.types: set[Any] = set()

    def circuit(self) -> Circuit:
        """Return the network."""
        parsed, parts = self.parsed, list[Block | Projection]()
        for path, found in parsed.populations.items():
            into = [one for one in parsed.ways if one.target == path]
            if not into:
                raise RecipeError(f"node {found.main!r}: nothing leads to it")
            into = sorted(into, key=lambda one: (self._back(one), self.places[one.source]))
            parts += [self._projection(one) for one in into]
            parts.append(self._block(found, into[0].path))
        readout, (filtered, behind), resistance = self._readout()
        output, simulator = parsed.last.source, self.simulator
        network = Circuit(parts, readout, self.encoding, filtered, behind, output, simulator)
        small = self.types == {np.dtype(np.float32)}
        network = network.to(torch.float32 if small else torch.float64)
        shapes = {path: found.shape for path, found in parsed.populations.items()}
        network.__dict__["origin"] = Origin(
            parsed.names, {INPUT: parsed.shape, **shapes}, self.weights, resistance, self.learned
        )
        return network

    def _note_learned(self, path: str, main: str, said: Any) -> None:
        """Keep, and say, what every neuron had learned: NIR has its values, not that it learns."""
        if not isinstance(said, str):
            return
        self.learned[path] = said
        warnings.warn(
            f"{self.where}: node {main!r}: learned = {brief(said)!r}: the constants keep their "
            "values and are fixed in this network",
            stacklevel=2,
        )

    def _back(self, one: Connection) -> bool:
        return self.places[one.source] >= self.places[one.target]

    # Populations

    def _block(self, found: PopulationNodes, first: str) -> Block:
        path, notes = found.path, self.parsed.noted(found.main)
        where = f"{self.where}: node {found.main!r}"
        # earlier versions noted one surrogate for the whole graph
        neuron = neuron_of(found.cell, self.parsed.notes | notes, where)
        weight = np.asarray(found.cell.weight)
        if type(neuron) is not type(found.cell) and np.any(weight != 1):
            self.weights[path] = weight
        self._note_learned(path, found.main, notes.get("learned"))
        encoding, simulator = self.encoding, self.simulator
        name = path.removeprefix("cells.")
        cells = Population(
            neuron, found.units, encoding.steps, encoding.dt_ms, simulator, f"populations.{name}"
        )
        noted = {key: notes[key] for key in ("dropout",) if key in notes}
        dropout = construct(PopulationRecipe, noted, where).dropout
        after = {"dropout": Dropout(dropout)} if dropout else {}
        plain = path.startswith("cells.")
        return Block(
            path,
            cells,
            name if plain else first,
            after=after,
            inner="" if plain and not after else ".activity",
            whole=bool(after),
            spiking=neuron.spiking,
        )

    # What connects them

    def _projection(self, one: Connection) -> Projection:
        parsed, back = self.parsed, self._back(one)
        pool, shape = self._pooled(one, self._shape(one.source))
        layer = self._layer(one, shape)
        outputs, inputs = _sizes(layer)
        units = (parsed.populations[one.target].units, math.prod(shape))
        if (outputs, inputs) != units:
            raise RecipeError(
                f"node {one.weight or one.path!r}: weights from {inputs} units to {outputs}, "
                f"between {one.source!r} of {units[1]} and {one.target!r} of {units[0]}"
            )
        layer = self._late(layer, one, pool)
        lag = self._lag(one) + back
        return Projection(one.path, one.source, one.target, layer, lag=lag, before=pool)

    def _shape(self, source: str) -> tuple[int, ...]:
        if source == INPUT:
            return self.parsed.shape
        return self.parsed.populations[source].shape

    def _pooled(
        self, one: Connection, shape: tuple[int, ...]
    ) -> tuple[Pooling | None, tuple[int, ...]]:
        """Return what reduces the source's grid, and the shape behind it."""
        if not one.pool:
            return None, shape
        node = self.parsed.nodes[one.pool]
        sizes, strides = set(np.ravel(node.kernel_size)), set(np.ravel(node.stride))
        if len(shape) != 3 or len(sizes) + len(strides) != 2 or np.any(node.padding):
            raise CapabilityError(
                f"node {one.pool!r}: biograd pools grids (channels, height, width) in square "
                "windows, with one stride and no padding"
            )
        kind = "average" if self.parsed.kind(one.pool) == "AvgPool2d" else "sum"
        pool = Pooling(shape, int(sizes.pop()), int(strides.pop()), kind)  # type: ignore[arg-type]
        return pool, pool.target_shape

    def _layer(self, one: Connection, shape: tuple[int, ...]) -> nn.Module:
        """Return the layer of a way, its weights set."""
        if not one.weight:
            return OneToOne(math.prod(shape)).double()
        node, kind = self.parsed.nodes[one.weight], self.parsed.kind(one.weight)
        notes = self.parsed.noted(one.weight)
        weight = np.asarray(node.scale if kind == "Scale" else node.weight)
        weight = weight.reshape(-1, 1) if kind == "Scale" else weight
        self.types.add(weight.dtype.newbyteorder("="))
        bias = np.asarray(node.bias) if hasattr(node, "bias") else None
        if kind == "Conv2d":
            bias = None if notes.get("bias") == "none" else bias
            return _filled(self._convolution(one.weight, shape, bias is not None), weight, bias)
        if weight.ndim != 2:
            raise CapabilityError(
                f"node {one.weight!r}: weights of shape {weight.shape}, not a matrix"
            )
        mask, sign = notes.get("mask"), notes.get("sign", "both")
        if sign not in SIGNS or (SIGNS[sign] * weight < 0).any():
            raise RecipeError(
                f"node {one.weight!r}: it notes sign = {sign!r}, its weights have others"
            )
        own = weight if sign == "both" else abs(weight)
        if kind == "Scale":
            return _filled(OneToOne(len(weight), sign=sign), own, None)
        if mask is None and sign == "both":
            return _linear(weight, bias)
        exists = np.ones(weight.shape, bool) if mask is None else np.asarray(mask, bool)
        if exists.shape != weight.shape:
            raise RecipeError(f"node {one.weight!r}: a mask of another shape than its weights")
        return _filled(Masked(torch.from_numpy(exists), bias is not None, sign), own, bias)

    def _convolution(self, name: str, shape: tuple[int, ...], bias: bool) -> Convolution:
        """Return a convolution; biograd's have square kernels."""
        node, side = self.parsed.nodes[name], int(self.parsed.nodes[name].weight.shape[-1])
        stride = {int(step) for step in np.ravel(node.stride)}
        words = {"same": side // 2, "valid": 0}
        given = node.padding if not isinstance(node.padding, (str, bytes)) else plain(node.padding)
        padding = {words.get(n, n) for n in np.ravel(given).tolist()}
        square = node.weight.shape[-2] == side and len(stride) == 1 and len(padding) == 1
        simple = set(np.ravel(node.dilation).tolist()) == {1} and int(node.groups) == 1
        if not square or not simple or ("same" in np.ravel(given) and not side % 2):
            raise CapabilityError(
                f"node {name!r}: biograd's convolutions have square kernels, one stride, one "
                "padding, no dilation and no groups"
            )
        if len(shape) != 3 and node.input_shape is not None:
            shape = (int(node.weight.shape[1]), *(int(size) for size in node.input_shape))
        if len(shape) != 3:
            raise CapabilityError(f"node {name!r}: what it receives lies in no grid")
        channels = len(node.weight)
        return Convolution(shape, channels, side, stride.pop(), bias, int(padding.pop()))

    def _late(self, layer: nn.Module, one: Connection, pool: object) -> nn.Module:
        """Return a layer with the delays of its axons."""
        if not one.axons_ms:
            return layer
        if pool is not None or not isinstance(layer, nn.Linear | Masked):
            raise CapabilityError(
                f"node {self.parsed.names.get(f'{one.path}.delay')!r}: every unit has a delay of "
                "its own, which goes with weights that are a matrix, without pooling"
            )
        steps = [self._steps(one, each) for each in one.axons_ms]
        recipe = DelayRecipe("axon", one.axons_ms, max(one.axons_ms))
        late = Delayed(layer, recipe, torch.tensor(steps, dtype=layer.weight.dtype), max(steps))
        bias = None if layer.bias is None else layer.bias.detach().numpy()
        return _filled(late, layer.weight.detach().numpy(), bias)

    def _lag(self, one: Connection) -> int:
        """Return a delay in steps."""
        return self._steps(one, one.delay_ms)

    def _steps(self, one: Connection, delay_ms: float) -> int:
        dt_ms, node = self.encoding.dt_ms, self.parsed.names.get(f"{one.path}.delay")
        steps = delay_ms / dt_ms
        if abs(steps - round(steps)) > 1e-9 * max(1, steps) or steps < 0:
            raise RecipeError(
                f"node {node!r}: a delay of {delay_ms:g} ms is no multiple of dt_ms = {dt_ms:g}"
            )
        if steps >= self.encoding.steps:
            duration = self.encoding.duration_ms
            raise RecipeError(f"node {node!r}: nothing arrives within a trial of {duration:g} ms")
        return round(steps)

    # What is read

    def _readout(self) -> tuple[nn.Linear, tuple[Any, Any], float | None]:
        """Return the readout, what stands before and behind it, and an unusual resistance."""
        parsed, steps, dt_ms = self.parsed, self.encoding.steps, self.encoding.dt_ms
        tau, r = 0.0, 1.0
        if parsed.leak:
            leak = parsed.nodes[parsed.leak]
            tau, r = milliseconds(settled(leak.tau)), settled(leak.r)  # type: ignore[arg-type, assignment]
        unit, share = weighing(math.exp(-dt_ms / tau) if tau else None, parsed.read, steps)
        layer = self._read(1.0 if r == unit else r / unit, r * share)
        own = r if tau and abs(r - unit) > SAME * unit else None
        if parsed.read == "steps":
            return layer, (None, LeakyReadout(dt_ms, tau) if tau else nn.Identity()), own
        kind = next(kind for kind, way in READS.items() if way == (bool(tau), parsed.read))
        return layer, (Readout(kind, steps, dt_ms, tau or 20.0), None), own

    def _read(self, of_weight: float, of_bias: float) -> nn.Linear:
        """Return the linear layer behind what is read."""
        one, units = self.parsed.last, math.prod(self._shape(self.parsed.last.source))
        if not one.weight:
            return _linear(np.eye(units), None)
        node = self.parsed.nodes[one.weight]
        weight, bias = np.asarray(node.weight), getattr(node, "bias", None)
        if weight.ndim != 2 or weight.shape[1] != units:
            raise RecipeError(
                f"node {one.weight!r}: weights from {weight.shape[-1]} units, behind "
                f"{one.source!r} of {units}"
            )
        self.types.add(weight.dtype.newbyteorder("="))
        bias = None if bias is None else np.asarray(bias).astype(np.float64) * of_bias
        return _linear((weight * of_weight).astype(weight.dtype), bias)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a layer."""
    if isinstance(layer, Convolution):
        return math.prod(layer.target_shape), math.prod(layer.shape)
    outputs, inputs = layer.weight.shape  # type: ignore[misc]
    return outputs, outputs if isinstance(layer, OneToOne) else inputs


def _linear(weight: Array, bias: Array | None) -> nn.Linear:
    layer = GatheringLinear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _filled(layer, weight, bias)
    return layer


def _filled(layer: nn.Module, weight: Array, bias: Array | None) -> nn.Module:
    """Set weight and bias, in double precision until the whole network has its type."""
    layer.double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight, np.float64)))  # type: ignore[operator]
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias, np.float64)))  # type: ignore[operator]
    return layer


def _encoding(parsed: Parser, choices: Choices, where: str) -> Encoding:
    """Return how data become what flows into the input.

    That of the caller, else that which the graph notes, else ``rows``: data are courses
    ``[steps, units]``.
    """
    noted, units = parsed.notes.get("encoding"), math.prod(parsed.shape)
    recipe, shape = choices.encoding, parsed.shape
    known = recipe is not None or isinstance(noted, str)
    if recipe is None and isinstance(noted, str):
        try:
            recipe = construct(EncodingRecipe, json.loads(noted), where, "encoding")
        except (ValueError, TypeError, RecursionError) as error:
            raise RecipeError(f"{where}: encoding: {error}") from error
        shape = tuple(int(size) for size in np.ravel(parsed.notes.get("datum_shape", shape)))
    if not known and choices.duration_ms is None:
        raise RecipeError(f"{where}: duration_ms: missing: how long is a trial? Or give encoding=")
    recipe = recipe or EncodingRecipe(kind="rows")
    duration = recipe.duration_ms if choices.duration_ms is None else choices.duration_ms
    recipe = dataclasses.replace(recipe, dt_ms=parsed.dt_ms, duration_ms=duration)
    rows = recipe.kind in ("rows", "delta")
    if rows and (choices.encoding is not None or not known):
        width = units // (2 if recipe.kind == "delta" else 1)
        shape = (round(duration / parsed.dt_ms), width)
    encoding = build_encoding(recipe, shape)
    if encoding.units != units:
        raise RecipeError(
            f"{where}: encoding {recipe.kind!r} gives {encoding.units} units, the input has {units}"
        )
    return encoding
