"""A sketch as a NIR graph."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any, Literal

import numpy as np

from biograd import __version__
from biograd.errors import CapabilityError, MissingExtraError
from biograd.interchange.cells import Array, Cell
from biograd.interchange.sketch import INPUT, Link, Sketch

Subtract = Literal["loop", "node"]
"""How a spike that takes from the potential is written."""


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


def graph(sketch: Sketch, subtract: Subtract = "loop") -> Any:
    """Return the NIR graph of a sketch.

    Raises:
        CapabilityError: shapes that NIR cannot bring together.
        MissingExtraError: ``nir`` is not installed.
    """
    writer = _Writer(sketch, subtract)
    writer.write()
    return writer.nir.NIRGraph(
        nodes=writer.nodes, edges=writer.edges, metadata=writer.metadata(), type_check=True
    )


class _Writer:
    """Collects nodes and edges; each node has the name that it had, or one of its own."""

    def __init__(self, sketch: Sketch, subtract: Subtract) -> None:
        self.sketch, self.subtract, self.nir = sketch, subtract, library()
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.entries: dict[str, str] = {}
        self.exits: dict[str, str] = {}

    def add(self, node: Any, kind: str, owner: str, part: str = "") -> str:
        """Add a node and return its name."""
        default = f"{owner}_{part}" if part else owner
        name = self.sketch.names.get((kind, owner, part), default.replace("/", "_"))
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        return name

    def write(self) -> None:
        """Write all nodes and edges."""
        shape = np.array(self.sketch.shape)
        self.exits[INPUT] = self.add(self.nir.Input(input_type=shape), "read", "input")
        for name, cell in self.sketch.cells.items():
            self.cell(name, cell)
        for one in self.sketch.links:
            self.link(one)
        self.reading()

    def metadata(self) -> dict[str, Any]:
        """Return what else a reader should know of the graph."""
        found: dict[str, Any] = {
            "written_by": f"biograd {__version__}",
            "order": json.dumps([self.exits[name] for name in self.sketch.cells]),
            "read": self.sketch.reading.how,
            **self.sketch.notes,
        }
        if self.sketch.dt_ms is not None:
            found["dt_ms"] = self.sketch.dt_ms
        return found

    # Populations

    def cell(self, name: str, cell: Cell) -> None:
        """Write a population."""
        loop = cell.taken is not None and self.subtract == "loop"
        bare = cell.threshold is not None and cell.v_reset is None and cell.taken is None
        if loop or bare:
            self._integrator(name, cell, split=loop)
            threshold = self.nir.Threshold(threshold=self._shaped(cell, cell.threshold))
            self.exits[name] = self.add(threshold, "cell", name, "spikes")
            self.edges.append((self._main, self.exits[name]))
            if loop:
                self._loop(name, cell)
            return
        if cell.threshold is None:
            self._integrator(name, cell, split=False)
        else:
            self._spiking(name, cell)
        self.exits[name] = self._main

    def _integrator(self, name: str, cell: Cell, split: bool) -> None:
        """Write a population without its threshold; ``split``: its filter is a node of its own."""
        r = self._shaped(cell, cell.r)
        if cell.tau is None:
            node = self.nir.I(r=r)
        elif cell.tau_syn is not None and not split:
            node = self.nir.CubaLI(**self._filtered(cell), r=r)
        else:
            node = self.nir.LI(**self._leak(cell), r=r)
        node.metadata = _learned(cell)
        self._main = self.entries[name] = self.add(node, "cell", name)
        if cell.tau_syn is not None and split:
            zero = np.zeros(cell.shape)
            tau, w_in = (self._shaped(cell, values) for values in (cell.tau_syn, cell.w_in))
            synaptic = self.nir.LI(tau=tau, r=w_in, v_leak=zero)
            self.entries[name] = self.add(synaptic, "cell", name, "filter")
            self.edges.append((self.entries[name], self._main))

    def _spiking(self, name: str, cell: Cell) -> None:
        """Write a population as one node."""
        spike = {
            "r": self._shaped(cell, cell.r),
            "v_threshold": self._shaped(cell, cell.threshold),
        }
        if cell.v_reset is not None:
            spike["v_reset"] = self._shaped(cell, cell.v_reset)
        elif not cell.takes_threshold():
            raise CapabilityError(
                f"{name}: subtract = 'node': a spike takes something else than the threshold from "
                "the potential; take subtract = 'loop'"
            )
        else:
            spike["v_reset"] = np.zeros(cell.shape)
        if cell.tau is None:
            node = self.nir.IF(**spike)
        elif cell.tau_syn is not None:
            node = self.nir.CubaLIF(**self._filtered(cell), **spike)
        else:
            node = self.nir.LIF(**self._leak(cell), **spike)
        node.metadata = _learned(cell)
        if cell.taken is not None:
            node.metadata["reset"] = "subtract"
        self._main = self.entries[name] = self.add(node, "cell", name)

    def _loop(self, name: str, cell: Cell) -> None:
        """Let the spikes of a population inhibit it, so that each takes what it has to."""
        assert cell.taken is not None
        if self.sketch.dt_ms is None:
            raise CapabilityError(f"{name}: what a spike takes depends on dt_ms, which is missing")
        gain = cell.gain(self.sketch.dt_ms)
        if not gain.all():
            raise CapabilityError(
                f"{name}: a spike takes from a potential that no current reaches (resistance 0)"
            )
        node = self.nir.Scale(scale=self._shaped(cell, -cell.taken / gain))
        if cell.takes_threshold():
            node.metadata = {"takes": "threshold"}
        back = self.add(node, "cell", name, "reset")
        self.edges += [(self.exits[name], back), (back, self._main)]

    def _leak(self, cell: Cell) -> dict[str, Array]:
        return {"tau": self._shaped(cell, cell.tau), "v_leak": self._shaped(cell, cell.v_leak)}

    def _filtered(self, cell: Cell) -> dict[str, Array]:
        names = {"tau_mem": cell.tau, "v_leak": cell.v_leak, "tau_syn": cell.tau_syn}
        return {
            name: self._shaped(cell, values)
            for name, values in (names | {"w_in": cell.w_in}).items()
        }

    @staticmethod
    def _shaped(cell: Cell, values: Array | None) -> Array:
        assert values is not None
        return np.array(values).reshape(cell.shape)

    # What connects them

    def link(self, one: Link) -> None:
        """Write what leads to a population."""
        sketch = self.sketch
        shape = sketch.shape if one.source == INPUT else sketch.cells[one.source].shape
        here, shape = self.exits[one.source], tuple(shape)
        if one.delay:
            node = self.nir.Delay(delay=np.full(shape, one.delay))
            here = self._then(here, node, "link", one.name, "delay")
        if one.weight is not None:
            here, shape = self._weighted(here, shape, one)
        here, shape = self._fitted(here, shape, sketch.cells[one.target].shape, one.name)
        self.edges.append((here, self.entries[one.target]))

    def _weighted(self, here: str, shape: tuple[int, ...], one: Link) -> tuple[str, Any]:
        weight, bias = one.weight, one.bias
        assert weight is not None
        if one.grid is not None:
            if shape != one.grid.shape:
                raise CapabilityError(
                    f"{one.name}: NIR cannot bring {shape} units into the grid {one.grid.shape} of "
                    "a convolution"
                )
            return self._convolved(here, one)
        if weight.ndim == 1:
            here, shape = self._fitted(here, shape, self.sketch.cells[one.target].shape, one.name)
            node = self.nir.Scale(scale=weight.reshape(shape))
            return self._then(here, node, "link", one.name), shape
        here, _ = self._fitted(here, shape, (weight.shape[1],), one.name)
        affine = bias is not None
        node = self.nir.Affine(weight, bias) if affine else self.nir.Linear(weight)
        if one.mask is not None:
            node.metadata["mask"] = one.mask.astype(np.uint8)
        if one.sign != "both":
            node.metadata["sign"] = one.sign
        return self._then(here, node, "link", one.name), (len(weight),)

    def _convolved(self, here: str, one: Link) -> tuple[str, tuple[int, ...]]:
        weight, grid = one.weight, one.grid
        assert weight is not None and grid is not None
        node = self.nir.Conv2d(
            input_shape=grid.shape[1:],
            weight=weight,
            stride=(grid.stride, grid.stride),
            padding=(grid.padding, grid.padding),
            dilation=(1, 1),
            groups=1,
            bias=np.zeros(len(weight), weight.dtype) if one.bias is None else one.bias,
        )
        if one.bias is None:
            node.metadata["bias"] = "none"
        here = self._then(here, node, "link", one.name)
        return here, tuple(int(size) for size in node.output_type["output"])

    def _fitted(
        self, here: str, shape: tuple[int, ...], wanted: tuple[int, ...], owner: str
    ) -> tuple[str, tuple[int, ...]]:
        """Flatten what comes in a grid where a row is wanted."""
        if shape == tuple(wanted):
            return here, shape
        if len(wanted) != 1 or np.prod(shape) != wanted[0]:
            raise CapabilityError(
                f"{owner}: NIR cannot bring {shape} units into the shape {tuple(wanted)}"
            )
        node = self.nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return self._then(here, node, "link", owner, "flatten"), tuple(wanted)

    def _then(self, here: str, node: Any, *names: str) -> str:
        name = self.add(node, *names)
        self.edges.append((here, name))
        return name

    # What is read

    def reading(self) -> None:
        """Write what is read of the last population, up to the output."""
        one, here = self.sketch.reading, self.exits[self.sketch.reading.source]
        shape: tuple[int, ...] = self.sketch.cells[one.source].shape
        if one.weight is not None:
            here, _ = self._fitted(here, shape, (one.weight.shape[1],), "readout")
            bias = one.bias
            affine = bias is not None
            node = self.nir.Affine(one.weight, bias) if affine else self.nir.Linear(one.weight)
            here, shape = self._then(here, node, "read", "readout"), (len(one.weight),)
        if one.tau is not None:
            every = np.ones(shape)
            leaky = self.nir.LI(tau=one.tau * every, r=one.r * every, v_leak=0 * every)
            here = self._then(here, leaky, "read", "readout", "leak")
        self._then(here, self.nir.Output(output_type=np.array(shape)), "read", "output")


def _learned(cell: Cell) -> dict[str, Any]:
    return {"learned": cell.trains} if cell.trains else {}
