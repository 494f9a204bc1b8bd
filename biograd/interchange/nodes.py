"""A network as a NIR graph: its populations and projections, node by node."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import warnings
from types import ModuleType
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from biograd import __version__
from biograd.circuit.circuit import Circuit
from biograd.circuit.delays import Delayed
from biograd.circuit.graph import INPUT, SKIP, Block, Projection
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.projections import Masked, OneToOne, Sparse
from biograd.circuit.readouts import Counts, LeakyReadout, Readout
from biograd.errors import CapabilityError, MissingExtraError
from biograd.interchange.forms import array, cell_of
from biograd.interchange.nir_neuron import KEYS, Array, NirNeuron
from biograd.interchange.weighing import READS, Read, origin_of, weighing
from biograd.simulators.gathered import GatheringLinear
from biograd.substrate.effective import effective_parameters

Subtract = Literal["loop", "node"]
"""How a spike that takes from the potential is written."""
Shape = tuple[int, ...]
SIGNS = {"both": 0, "excitatory": 1, "inhibitory": -1}


def library() -> ModuleType:
    """Return the package ``nir``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("nir")
    except ImportError as error:
        raise MissingExtraError(
            "the package nir is not installed: pip install 'biograd[nir]'"
        ) from error


def graph(network: nn.Module, subtract: Subtract = "loop") -> Any:
    """Return the NIR graph of a network.

    Raises:
        CapabilityError: NIR has no node for a part of it.
        MissingExtraError: ``nir`` is not installed.
    """
    if not isinstance(network, Circuit) or network.encoding is None:
        raise CapabilityError(
            f"{type(network).__name__}: NIR describes populations in time: a spiking network or a "
            "circuit of biograd.build, no rate network, no event-driven one, no module of your own"
        )
    writer = _Writer(network, subtract)
    notes = writer.write()
    return writer.nir.NIRGraph(
        nodes=writer.nodes, edges=writer.edges, metadata=notes, type_check=True
    )


class _Writer:
    """Collects nodes and edges; each node has the name that it had, or one of its own."""

    def __init__(self, network: Circuit, subtract: Subtract) -> None:
        assert network.encoding is not None
        self.network, self.graph, self.nir = network, network.graph, library()
        self.encoding, self.subtract, self.origin = network.encoding, subtract, origin_of(network)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.entries: dict[str, str] = {}
        self.exits: dict[str, str] = {}
        self.shapes = {name: self._shape(name) for name in (INPUT, *self.graph.order)}

    def _shape(self, name: str) -> Shape:
        """Return in which shape the units of the input or a population lie."""
        if name in self.origin.shapes:
            return self.origin.shapes[name]
        into, found = name == INPUT, list[Shape]()
        units: Any = self.encoding.units if into else self.graph.blocks[name].cells.units
        for one in self.graph.projections:
            first = one.before or one.layer
            if into and one.source == INPUT and isinstance(first, (Convolution, Pooling)):
                found.append(first.shape)
            if one.target == name:
                found.append(getattr(one.layer, "target_shape", (units,)))
        return found[0] if len(set(found)) == 1 else (units,)

    def add(self, node: Any, path: str) -> str:
        """Add a node and return its name."""
        default = path.removeprefix("cells.").removeprefix("projections.")
        name = self.origin.names.get(path, default.replace(".", "_").replace("/", "_"))
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        return name

    def then(self, here: str, node: Any, path: str) -> str:
        """Add a node behind another."""
        name = self.add(node, path)
        self.edges.append((here, name))
        return name

    def write(self) -> dict[str, Any]:
        """Write all nodes and edges; return what else a reader should know of the graph."""
        node = self.nir.Input(input_type=np.array(self.shapes[INPUT]))
        self.exits[INPUT] = self.add(node, "input")
        for block in self.graph.blocks.values():
            self.population(block)
        for one in self.graph.projections:
            self.projection(one)
        return {
            "written_by": f"biograd {__version__}",
            "order": json.dumps([self.exits[name] for name in self.graph.order]),
            "read": self.reading(),
            "encoding": json.dumps(dataclasses.asdict(self.encoding.recipe)),
            "datum_shape": np.array(self.encoding.shape),
            "dt_ms": self.encoding.dt_ms,
        }

    # Populations

    def population(self, one: Block) -> None:
        """Write a population."""
        path, (cell, notes) = one.path, cell_of(one)
        notes |= {"learned": said} if (said := self.origin.learned.get(path)) else {}
        shape, cell = self.shapes[path], self._weighted_input(path, cell)
        cell = cell.each(lambda v: np.broadcast_to(v, (math.prod(shape),)).reshape(shape) * 1.0)
        if np.any(cell.given().get("synaptic_time_constant_ms", np.ones(1)) <= 0):
            raise CapabilityError(
                f"{path}: synaptic_time_constant_ms: zero for some neurons; NIR filters all or none"
            )
        loop = cell.taken is not None and self.subtract == "loop"
        apart = loop or (cell.spiking and cell.reset is None and cell.taken is None)
        if cell.spiking and not apart:
            cell = self._put(path, cell, notes)
        node = self._neurons(cell, apart, loop)
        node.metadata = notes
        main = self.entries[path] = self.exits[path] = self.add(node, path)
        if apart:
            threshold = self.nir.Threshold(threshold=cell.threshold)
            self.exits[path] = self.then(main, threshold, f"{path}.spikes")
        if loop:
            self._loop(path, cell, main)

    def _weighted_input(self, path: str, cell: NirNeuron) -> NirNeuron:
        """Return a cell whose resistance gives back the weight that it had taken in."""
        weight = self.origin.weights.get(path)
        if weight is None or cell.synaptic_time_constant_ms is None:
            return cell
        return dataclasses.replace(cell, weight=weight, resistance=cell.resistance / weight)

    def _put(self, path: str, cell: NirNeuron, notes: dict[str, Any]) -> NirNeuron:
        """Return a cell whose spikes put the potential somewhere; if they take, it is noted."""
        if cell.taken is None:
            return cell
        if not cell.takes_threshold():
            raise CapabilityError(
                f"{path}: subtract = 'node': a spike takes something else than the threshold from "
                "the potential; take subtract = 'loop'"
            )
        notes["reset"] = "subtract"
        return dataclasses.replace(cell, reset=0 * cell.resistance)

    def _neurons(self, cell: NirNeuron, apart: bool, loop: bool) -> Any:
        """Return the node of neurons; a threshold ``apart``, or a filter in front, are others."""
        kind = "I" if cell.time_constant_ms is None else "LI"
        if cell.synaptic_time_constant_ms is not None and not loop:
            kind = "CubaLI"
        kind += "F" if cell.spiking and not apart else ""
        values = {key: getattr(cell, own) for own, key in KEYS[kind].items()}
        seconds = {k: v / 1000 if k.startswith("tau") else v for k, v in values.items()}
        return getattr(self.nir, kind)(**seconds)

    def _loop(self, path: str, cell: NirNeuron, main: str) -> None:
        """Let the spikes of a population inhibit it, so that each takes what it has to."""
        gain = cell.gain(self.encoding.dt_ms)
        if not gain.all():
            raise CapabilityError(
                f"{path}: a spike takes from a potential that no current reaches (resistance 0)"
            )
        node = self.nir.Scale(scale=-cell.taken / gain)
        if cell.takes_threshold():
            node.metadata = {"takes": "threshold"}
        back = self.then(self.exits[path], node, f"{path}.reset")
        self.edges.append((back, main))
        if cell.synaptic_time_constant_ms is not None:
            tau = cell.synaptic_time_constant_ms / 1000
            filtered = self.nir.LI(tau=tau, r=cell.weight, v_leak=0 * tau)
            self.entries[path] = self.add(filtered, f"{path}.filter")
            self.edges.append((self.entries[path], main))

    # What connects them

    def projection(self, one: Projection) -> None:
        """Write what leads to a population."""
        if one.port == SKIP:
            raise CapabilityError(
                f"{one.path}: NIR has no node for a skip past neurons: it sums currents alone"
            )
        here, shape = self.exits[one.source], self.shapes[one.source]
        steps = one.lag - self.graph.back(one)
        if steps:
            node = self.nir.Delay(delay=np.full(shape, steps * self.encoding.dt_ms / 1000))
            here = self.then(here, node, f"{one.path}.delay")
        if one.before is not None:
            here, shape = self._pooled(here, shape, one.before, one.path)
        assert one.layer is not None
        here, shape = self.layer(here, shape, one.layer, one.path, self.shapes[one.target])
        here = self._fitted(here, shape, self.shapes[one.target], one.path)
        self.edges.append((here, self.entries[one.target]))

    def _pooled(self, here: str, shape: Shape, pool: nn.Module, path: str) -> tuple[str, Shape]:
        kinds = {"average": self.nir.AvgPool2d, "sum": self.nir.SumPool2d}
        kind = getattr(pool, "kind", "")
        if not isinstance(pool, Pooling) or kind not in kinds or len(pool.shape) != 3:
            raise CapabilityError(f"{path}: NIR has no node for {pool}")
        self._check_grid(shape, pool.shape, path, "pooling")
        size = np.full(2, pool.kernel)
        node = kinds[kind](kernel_size=size, stride=np.full(2, pool.stride), padding=0 * size)
        return self.then(here, node, f"{path}.pool"), pool.target_shape

    def _check_grid(self, shape: Shape, wanted: Shape, path: str, what: str) -> None:
        if tuple(shape) != tuple(wanted):
            raise CapabilityError(
                f"{path}: NIR cannot bring {shape} units into the grid {wanted} of a {what}"
            )

    def layer(
        self, here: str, shape: Shape, layer: nn.Module, path: str, target: Shape
    ) -> tuple[str, Shape]:
        """Write the node of a synaptic layer behind another; return it and its units' shape."""
        if isinstance(layer, Convolution) and len(layer.shape) == 3:
            self._check_grid(shape, layer.shape, path, "convolution")
            return self.then(here, self._convolution(layer), path), layer.target_shape
        if isinstance(layer, OneToOne) and layer.bias is None:
            weight = _signed(layer)[:, 0]
            if layer.sign == "both" and (weight == 1).all():
                return here, shape  # an edge says it
            here = self._fitted(here, shape, target, path)
            node = self.nir.Scale(scale=weight.reshape(target))
            shape = target
        else:
            weight, bias, mask = _dense(layer, path)
            here = self._fitted(here, shape, (weight.shape[1],), path)
            if isinstance(layer, Delayed):
                here = self._delays(here, layer, path)
            node = self.nir.Linear(weight) if bias is None else self.nir.Affine(weight, bias)
            if mask is not None and not mask.all():
                node.metadata["mask"] = mask.astype(np.uint8)
            shape = (len(weight),)
        if getattr(layer, "sign", "both") != "both":
            node.metadata["sign"] = layer.sign
        return self.then(here, node, path), shape

    def _delays(self, here: str, layer: Delayed, path: str) -> str:
        """Write the delays of axons, which NIR has in front of the weights, in whole steps."""
        if layer.recipe.per == "synapse":
            raise CapabilityError(f"{path}: NIR has no node for a delay of every synapse")
        found = array(layer.steps.double())
        if (found != found.round()).any():
            warnings.warn(
                f"{path}: learned delays between two steps are rounded, as a simulator does",
                RuntimeWarning,
                stacklevel=2,
            )
        ms = np.broadcast_to(found.round() * self.encoding.dt_ms, layer.mask.shape[1])
        return self.then(here, self.nir.Delay(delay=ms / 1000), f"{path}.delays")

    def _convolution(self, layer: Convolution) -> Any:
        weight, bias = array(layer.weight), layer.bias
        node = self.nir.Conv2d(
            input_shape=layer.shape[1:],
            weight=weight,
            stride=(layer.stride,) * 2,
            padding=(layer.padding,) * 2,
            dilation=(1, 1),
            groups=1,
            bias=np.zeros(len(weight), weight.dtype) if bias is None else array(bias),
        )
        if bias is None:
            node.metadata["bias"] = "none"
        return node

    def _fitted(self, here: str, shape: Shape, wanted: Shape, path: str) -> str:
        """Flatten what comes in a grid where a row is wanted."""
        if tuple(shape) == tuple(wanted):
            return here
        if len(wanted) != 1 or math.prod(shape) != wanted[0]:
            raise CapabilityError(
                f"{path}: NIR cannot bring {shape} units into the shape {tuple(wanted)}"
            )
        node = self.nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return self.then(here, node, f"{path}.flatten")

    # What is read

    def reading(self) -> Read:
        """Write what is read, up to the output; return what of its course is the output."""
        network, source = self.network, self.network.output
        tau, how = self._read()
        left = None if tau is None else math.exp(-self.encoding.dt_ms / tau)
        unit, share = weighing(left, how, network.steps)
        own = self.origin.resistance
        r = 1.0 if tau is None else unit if own is None else own
        here, shape = self.exits[source], self.shapes[source]
        weight, bias = np.eye(math.prod(shape)), None
        if not isinstance(network.readout, Counts):
            weight, bias, _ = _dense(network.readout, "readout")
        bare = tau is None and bias is None and np.array_equal(weight, np.eye(len(weight)))
        if not bare:
            here = self._fitted(here, shape, (weight.shape[1],), "readout")
            weight = weight if r == unit else weight * (unit / r)
            if bias is None:
                node = self.nir.Linear(weight)
            else:
                node = self.nir.Affine(weight, bias.astype(np.float64) / (r * share))
            here, shape = self.then(here, node, "readout"), (len(weight),)
        if tau is not None:
            every = np.ones(shape)
            leaky = self.nir.LI(tau=tau / 1000 * every, r=r * every, v_leak=0 * every)
            here = self.then(here, leaky, "readout.leak")
        self.then(here, self.nir.Output(output_type=np.array(shape)), "output")
        return how

    def _read(self) -> tuple[float | None, Read]:
        """Return the time constant of the readout's integrator, and what of its course is read."""
        behind, filtered = (getattr(self.network, name, None) for name in ("behind", "filtered"))
        if isinstance(behind, LeakyReadout):
            return behind.time_constant_ms, "steps"
        if isinstance(behind, nn.Identity):
            return None, "steps"
        kind = filtered.kind if isinstance(filtered, Readout) else type(filtered).__name__
        if kind not in READS:
            raise CapabilityError(
                f"network.readout = {kind!r}: NIR cannot express it; take 'membrane', 'rate', "
                "'filtered_rate' or 'potential'"
            )
        through, how = READS[kind]
        return (filtered.time_constant_ms if through else None), how  # type: ignore[union-attr]


def _dense(layer: nn.Module, path: str) -> tuple[Array, Array | None, Array | None]:
    """Return weight, bias and mask of a layer, with what is folded into its weights."""
    if isinstance(layer, Sparse):
        mask = np.zeros(layer.shape, bool)
        mask[tuple(array(layer.connections).T)] = True
        weight = np.zeros(layer.shape, array(layer.weight).dtype)
        weight[mask] = _signed(layer)  # both by target, then by source
        return weight, _optional(layer.bias), mask
    if isinstance(layer, OneToOne):
        return np.diag(_signed(layer)[:, 0]), _optional(layer.bias), np.eye(len(layer.weight)) > 0
    if isinstance(layer, Masked):
        mask = array(layer.mask)
        return _signed(layer) * mask, _optional(layer.bias), mask
    if type(layer) not in (nn.Linear, GatheringLinear):
        raise CapabilityError(f"{path}: NIR has no node for a layer {layer}")
    own, bias = effective_parameters(layer)
    return array(own), _optional(bias), None


def _signed(layer: Masked | Sparse | OneToOne) -> Array:
    """Return the weights that act."""
    weight = array(layer.weight)
    return weight if layer.sign == "both" else SIGNS[layer.sign] * abs(weight)


def _optional(values: Tensor | None) -> Array | None:
    return None if values is None else array(values)
