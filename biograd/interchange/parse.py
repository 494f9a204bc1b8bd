"""A NIR graph as a sketch: nodes become populations, links and what is read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from biograd.errors import CapabilityError, RecipeError
from biograd.interchange.cells import Array, Cell, common
from biograd.interchange.sketch import INPUT, Grid, Link, Read, Reading, Sketch

SPIKING = ("LIF", "IF", "CubaLIF")
GRADED = ("LI", "I", "CubaLI")
WEIGHTS = ("Affine", "Linear", "Scale", "Conv2d")
PASSING = ("Flatten", "Delay")
SIGNS = {"both": 0, "excitatory": 1, "inhibitory": -1}
KNOWN = ("Input", "Output", "Threshold", *SPIKING, *GRADED, *WEIGHTS, *PASSING)


def parse(graph: Any, dt_ms: float | None, subtracts: bool | None, read: Read | None) -> Sketch:
    """Return the sketch of a graph.

    Args:
        graph: a ``nir.NIRGraph``.
        dt_ms: length of a step; a loop by which a spike inhibits its own neuron depends on it.
        subtracts: whether a spike takes threshold - v_reset from the potential instead of putting
            it there; None: what the node notes.
        read: what of the course is the output; None: what the graph notes.

    Raises:
        CapabilityError: a node, or a way to connect nodes, that biograd does not know.
    """
    return _Parser(_flat(graph), graph.metadata or {}, dt_ms, subtracts).sketch(read)


def _flat(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return nodes and edges, those of graphs within the graph put in their place."""
    nodes, edges = {}, [(prefix + a, prefix + b) for a, b in graph.edges]
    for name, node in graph.nodes.items():
        if type(node).__name__ != "NIRGraph":
            nodes[prefix + name] = node
            continue
        own = f"{prefix}{name}"
        inner, ways = _flat(node, f"{own}.")
        ends: dict[str, list[str]] = {"Input": [], "Output": []}
        for at, one in inner.items():
            if type(one).__name__ in ends and at.removeprefix(f"{own}.") in node.nodes:
                ends[type(one).__name__].append(at)
        if len(ends["Input"]) != 1 or len(ends["Output"]) != 1:
            raise CapabilityError(f"node {own!r}: a graph with several inputs or outputs")
        start, stop = ends["Input"][0], ends["Output"][0]
        first = [b for a, b in ways if a == start]
        last = [a for a, b in ways if b == stop]
        nodes |= {at: one for at, one in inner.items() if at not in (start, stop)}
        edges = [
            (a, b)
            for one, two in edges
            for a in (last if one == own else [one])
            for b in (first if two == own else [two])
        ] + [(a, b) for a, b in ways if start not in (a, b) and stop not in (a, b)]
    return nodes, edges


@dataclasses.dataclass
class _Population:
    """The nodes that make a population: where it receives, where it sends, what it is."""

    name: str
    entry: str
    exit: str
    cell: Cell
    loop: str = ""
    """The node by which a spike inhibits its own neuron."""


class _Parser:
    def __init__(
        self,
        flat: tuple[dict[str, Any], list[tuple[str, str]]],
        notes: Mapping[str, Any],
        dt_ms: float | None,
        subtracts: bool | None,
    ) -> None:
        self.nodes, self.edges = flat
        self.notes = {name: _plain(value) for name, value in notes.items()}
        self.dt_ms, self.subtracts = dt_ms, subtracts
        self.before: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.after: dict[str, list[str]] = {name: [] for name in self.nodes}
        for one, two in self.edges:
            for name in (one, two):
                if name not in self.nodes:
                    raise CapabilityError(f"an edge names {name!r}, which is no node")
            self.before[two].append(one)
            self.after[one].append(two)
        self.names: dict[tuple[str, str, str], str] = {}
        self.taken = {INPUT, "readout", "output"}

    def kind(self, name: str) -> str:
        return type(self.nodes[name]).__name__

    def only(self, kind: str) -> str:
        """Return the name of the only node of a kind."""
        found = [name for name in self.nodes if self.kind(name) == kind]
        if len(found) != 1:
            listed = ", ".join(map(repr, found)) or "none"
            raise CapabilityError(f"a graph needs one {kind} node, found {listed}")
        return found[0]

    def sketch(self, read: Read | None) -> Sketch:
        """Return the sketch."""
        for name in self.nodes:
            if self.kind(name) not in KNOWN:
                raise CapabilityError(
                    f"node {name!r}: biograd has nothing for a {self.kind(name)} (known: "
                    f"{', '.join(KNOWN)})"
                )
        start, stop = self.only("Input"), self.only("Output")
        self.names |= {("read", "input", ""): start, ("read", "output", ""): stop}
        self.populations = {one.entry: one for one in self._populations()}
        if not self.populations:
            raise CapabilityError("a graph without populations: nothing is simulated in time")
        sources = {start: INPUT} | {one.exit: one.name for one in self.populations.values()}
        found, last = [], None
        for place, source in sources.items():
            for way in self._ways(place):
                if way[-1] == stop:
                    if last is not None:
                        raise CapabilityError(
                            f"node {stop!r}: it sums what several nodes bring; one is read"
                        )
                    last = (source, way[:-1])
                else:
                    found.append(self._link(source, way[:-1], self.populations[way[-1]]))
        if last is None:
            raise CapabilityError(f"node {stop!r}: no population leads to it")
        return self._finished(start, found, last, read)

    # Populations

    def _populations(self) -> Iterator[_Population]:
        used: set[str] = set()
        for name in [name for name in self.nodes if self.kind(name) == "Threshold"]:
            found = self._split(name)
            used |= {found.entry, found.exit, self._main, found.loop}
            yield found
        for name in self.nodes:
            if name in used or self.kind(name) not in (*SPIKING, *GRADED):
                continue
            cell = self._cell(name)
            yield _Population(self._named(name), name, name, self._reset(name, cell))

    def _split(self, threshold: str) -> _Population:
        """Return a population whose threshold is a node of its own."""
        main = self._sole(self.before[threshold])
        if main is None or self.kind(main) not in GRADED or self.after[main] != [threshold]:
            raise CapabilityError(
                f"node {threshold!r}: a threshold needs a node {', '.join(GRADED)} in front of it "
                "that leads to nothing else"
            )
        self._main, cell, name = main, self._cell(main), self._named(main)
        at = self._values(threshold, "threshold", cell.units)
        cell = dataclasses.replace(cell, threshold=at)
        self.names["cell", name, "spikes"] = threshold
        loop = next((one for one in self.after[threshold] if self._loops(one, main)), "")
        if not loop:
            return _Population(name, main, threshold, cell)
        self.names["cell", name, "reset"] = loop
        taken = self._taken(loop, cell)
        others = [one for one in self.before[main] if one != loop]
        synaptic = self._sole(others)
        entry = main
        if synaptic is not None and self._filters(synaptic, main):
            self.names["cell", name, "filter"] = entry = synaptic
            tau, w_in = (self._values(synaptic, key, cell.units) for key in ("tau", "r"))
            cell = dataclasses.replace(cell, tau_syn=tau, w_in=w_in)
        return _Population(
            name, entry, threshold, dataclasses.replace(cell, taken=taken), loop=loop
        )

    def _loops(self, name: str, main: str) -> bool:
        """Return whether a node leads what spikes to the potential, not through a filter."""
        ends = self.after[name] == [main] and len(self.before[name]) == 1
        return self.kind(name) == "Scale" and ends and self.kind(main) in ("LI", "I")

    def _taken(self, loop: str, cell: Cell) -> Array:
        """Return what a spike takes from the potential through a loop."""
        if _plain((self.nodes[loop].metadata or {}).get("takes")) == "threshold":
            assert cell.threshold is not None
            return cell.threshold
        if self.dt_ms is None:
            raise RecipeError(f"node {loop!r}: what a spike takes depends on dt_ms: give it")
        return -self._values(loop, "scale", cell.units) * cell.gain(self.dt_ms)

    def _filters(self, name: str, main: str) -> bool:
        """Return whether a leaky integrator is the synaptic filter of a population."""
        leaks = self.kind(name) == "LI" and not np.any(self.nodes[name].v_leak)
        return leaks and self.after[name] == [main] and bool(self.before[name])

    def _cell(self, name: str) -> Cell:
        """Return the constants of a node."""
        node, kind = self.nodes[name], self.kind(name)
        shape = tuple(int(size) for size in np.shape(node.r)) or (1,)
        units = int(np.prod(shape))
        values: dict[str, Any] = {"r": self._values(name, "r", units)}
        if kind.startswith("Cuba"):
            values["tau"] = self._values(name, "tau_mem", units)
            for key in ("v_leak", "tau_syn", "w_in"):
                values[key] = self._values(name, key, units)
        elif kind in ("LI", "LIF"):
            values |= {key: self._values(name, key, units) for key in ("tau", "v_leak")}
        if kind in SPIKING:
            values["threshold"] = self._values(name, "v_threshold", units)
            values["v_reset"] = self._values(name, "v_reset", units)
        for key in ("tau", "tau_syn"):
            if key in values and (values[key] <= 0).any():
                raise RecipeError(f"node {name!r}: {key} must be above zero")
        return Cell(shape, **values)

    def _reset(self, name: str, cell: Cell) -> Cell:
        """Return a cell whose spikes subtract, if they do."""
        noted = _plain((self.nodes[name].metadata or {}).get("reset")) == "subtract"
        subtracts = noted if self.subtracts is None else self.subtracts
        if cell.v_reset is None or not subtracts:
            return cell
        assert cell.threshold is not None
        return dataclasses.replace(cell, v_reset=None, taken=cell.threshold - cell.v_reset)

    def _values(self, name: str, key: str, units: int) -> Array:
        value = np.asarray(getattr(self.nodes[name], key), np.float64).ravel()
        if value.size not in (1, units) or not np.isfinite(value).all():
            raise RecipeError(
                f"node {name!r}: {key} has {value.size} values for {units} neurons, or some that "
                "are not finite"
            )
        return np.broadcast_to(value, (units,)).copy()

    def _named(self, name: str, kind: str = "cell") -> str:
        """Return a name that a module can have, and remember that of the node."""
        base = re.sub(r"\W", "_", name)
        if not base.isidentifier() or hasattr(nn.ModuleDict(), base):
            base = f"node_{base}"
        while base in self.taken:
            base += "_"
        self.taken.add(base)
        self.names[kind, base, ""] = name
        return base

    @staticmethod
    def _sole(names: list[str]) -> str | None:
        return names[0] if len(names) == 1 else None

    # What connects them

    def _ways(self, place: str) -> Iterator[list[str]]:
        """Yield the nodes on each way from a place to the next population, which ends it."""
        stop = self.names["read", "output", ""]
        loops = {one.loop for one in self.populations.values()} - {""}
        open_ways = [[name] for name in self.after[place] if name not in loops]
        while open_ways:
            way = open_ways.pop(0)
            here = way[-1]
            if here in self.populations or here == stop:
                yield way
                continue
            if self.kind(here) not in (*WEIGHTS, *PASSING):
                raise CapabilityError(f"node {here!r}: nothing can lead to a {self.kind(here)}")
            if len(self.before[here]) > 1:
                raise CapabilityError(
                    f"node {here!r}: it sums what several nodes bring; only a population does"
                )
            if not self.after[here]:
                raise CapabilityError(f"node {here!r}: it leads nowhere")
            if len(self.after[here]) > 1 and self.kind(here) in WEIGHTS:
                raise CapabilityError(f"node {here!r}: its weights act in several places")
            open_ways += [[*way, name] for name in self.after[here]]

    def _link(self, source: str, way: list[str], target: _Population) -> Link:
        """Return the nodes between two populations as a link."""
        weights = [name for name in way if self.kind(name) in WEIGHTS]
        if len(weights) > 1:
            raise CapabilityError(
                f"node {weights[1]!r}: a layer right behind {weights[0]!r}, no population between"
            )
        if weights:
            name = self._named(weights[0], "link")
        else:
            name = self._named(f"{source}_{target.name}", "link")
            del self.names["link", name, ""]
        one = Link(name, source, target.name, None, delay=self._delay(way, weights))
        for part in way:
            if part not in weights:
                self.names["link", name, self.kind(part).lower()] = part
        return self._weighted(one, weights[0]) if weights else one

    def _delay(self, way: list[str], weights: list[str]) -> float:
        """Return how long a way takes."""
        total = 0.0
        for place, name in enumerate(way):
            if self.kind(name) != "Delay":
                continue
            value = common(np.asarray(self.nodes[name].delay, np.float64))
            if value is None:
                raise CapabilityError(f"node {name!r}: every unit has a delay of its own")
            if any(np.any(getattr(self.nodes[w], "bias", 0)) for w in weights if w in way[:place]):
                raise CapabilityError(f"node {name!r}: it delays a bias, too: put it before")
            total += value
        return total

    def _weighted(self, one: Link, name: str) -> Link:
        """Return a link with the weights of a node."""
        node, kind = self.nodes[name], self.kind(name)
        notes = {key: _plain(value) for key, value in (node.metadata or {}).items()}
        if kind == "Scale":
            return dataclasses.replace(one, weight=np.asarray(node.scale).ravel())
        weight = np.asarray(node.weight)
        bias = np.asarray(node.bias) if hasattr(node, "bias") else None
        if kind == "Conv2d":
            bias = None if notes.get("bias") == "none" else bias
            return dataclasses.replace(
                one, weight=weight, bias=bias, grid=self._grid(one.source, name)
            )
        if weight.ndim != 2:
            raise CapabilityError(f"node {name!r}: weights of shape {weight.shape}, not a matrix")
        mask, sign = notes.get("mask"), notes.get("sign", "both")
        if sign not in SIGNS or (SIGNS[sign] * weight < 0).any():
            raise RecipeError(f"node {name!r}: it notes sign = {sign!r}, its weights have others")
        return dataclasses.replace(
            one,
            weight=weight,
            bias=bias,
            mask=None if mask is None else np.asarray(mask, bool),
            sign=sign,
        )

    def _grid(self, source: str, name: str) -> Grid:
        """Return how a convolution lies; biograd's have square kernels that end at the edge."""
        node, side = self.nodes[name], int(self.nodes[name].weight.shape[-1])
        stride = {int(step) for step in np.ravel(node.stride)}
        plain = isinstance(node.padding, (str, bytes))
        padding = {str(_plain(node.padding))} if plain else {int(n) for n in np.ravel(node.padding)}
        square = node.weight.shape[-2] == side and len(stride) == 1
        simple = set(np.ravel(node.dilation).tolist()) == {1} and int(node.groups) == 1
        if not square or not simple or padding != {side // 2}:
            raise CapabilityError(
                f"node {name!r}: biograd's convolutions have square kernels, one stride, a padding "
                f"of half a kernel ({side // 2}), no dilation and no groups"
            )
        shape = self._shape(source)
        if len(shape) != 3 and node.input_shape is not None:
            shape = (int(node.weight.shape[1]), *(int(size) for size in node.input_shape))
        if len(shape) != 3:
            raise CapabilityError(f"node {name!r}: what it receives lies in no grid")
        return Grid((shape[0], shape[1], shape[2]), stride.pop(), padding.pop())  # type: ignore[arg-type]

    def _shape(self, source: str) -> tuple[int, ...]:
        if source == INPUT:
            start = self.nodes[self.names["read", "input", ""]]
            return tuple(int(size) for size in np.ravel(start.input_type["input"]))
        return next(one.cell.shape for one in self.populations.values() if one.name == source)

    # What is read, and in which order

    def _finished(
        self, start: str, links: list[Link], last: tuple[str, list[str]], read: Read | None
    ) -> Sketch:
        cells = {one.name: one.cell for one in self.populations.values()}
        cells = {name: _spread(cell, links, name) for name, cell in cells.items()}
        how = read or self.notes.get("read")
        if how not in (None, "mean", "sum", "last"):
            raise RecipeError(f"read = {how!r}: take 'mean', 'sum' or 'last'")
        reading, cells, links = self._reading(cells, links, last, how)
        order = self._order(cells, links)
        notes = {k: v for k, v in self.notes.items() if k not in ("read", "order", "dt_ms")}
        return Sketch(
            shape=self._shape(INPUT),
            cells={name: cells[name] for name in order},
            links=tuple(links),
            reading=reading,
            dt_ms=self.dt_ms,
            names=self.names,
            notes=notes,
        )

    def _reading(
        self,
        cells: dict[str, Cell],
        links: list[Link],
        last: tuple[str, list[str]],
        how: Read | None,
    ) -> tuple[Reading, dict[str, Cell], list[Link]]:
        """Return what is read; a leaky integrator of weighted spikes is part of the readout."""
        source, way = last
        cell = cells[source]
        if not way and how != "sum" and self._is_readout(cells, links, source):
            (one,) = (link for link in links if link.target == source)
            others = {name: kept for name, kept in cells.items() if name != source}
            self._read_by(one.name)
            self.names["read", "readout", "leak"] = self.names.pop(("cell", source, ""))
            assert cell.tau is not None
            tau, r = float(cell.tau[0]), float(cell.r[0])
            read = Reading(one.source, one.weight, one.bias, tau, r, how or "mean")
            return read, others, [link for link in links if link is not one]
        whole = self._link(source, way, _Population("", "", "", cell))
        if whole.delay or whole.grid or (whole.weight is not None and whole.weight.ndim != 2):
            raise CapabilityError(
                f"node {way[-1]!r}: what is read of a population is a Linear or Affine node"
            )
        self._read_by(whole.name)
        chosen: Read = how or ("mean" if cell.threshold is None else "sum")
        if chosen == "last":
            raise CapabilityError(
                "read = 'last': what is read last must be a leaky integrator of weighted spikes"
            )
        return Reading(source, whole.weight, whole.bias, how=chosen), cells, links

    def _read_by(self, link: str) -> None:
        """Let the nodes of a link be those of the readout."""
        for kind, part in (("read", ""), ("link", "flatten")):
            name = self.names.pop(("link", link, part), None)
            if name is not None:
                self.names[kind, "readout", part] = name

    def _is_readout(self, cells: dict[str, Cell], links: list[Link], name: str) -> bool:
        """Return whether a population is a leaky integrator of weighted spikes, all alike."""
        cell, into = cells[name], [one for one in links if one.target == name]
        if cell.threshold is not None or cell.tau is None or cell.tau_syn is not None:
            return False
        alike = all(common(value) is not None for value in cell.values().values())
        if not alike or np.any(cell.v_leak) or len(into) != 1:
            return False
        (one,) = into
        plain = one.mask is None and one.sign == "both" and not one.delay
        dense = one.weight is not None and one.weight.ndim == 2 and one.source != name
        spikes = one.source != INPUT and cells[one.source].threshold is not None
        return plain and dense and spikes and not any(link.source == name for link in links)

    def _order(self, cells: dict[str, Cell], links: list[Link]) -> list[str]:
        """Return the order in which a step runs through the populations.

        That which the graph notes; else that of the shortest way from the input, what depends on
        nothing that is still to come before what does.
        """
        noted = self.notes.get("order")
        if isinstance(noted, str):
            exits = {one.exit: one.name for one in self.populations.values()}
            with contextlib.suppress(ValueError, TypeError):
                order = [exits.get(name, "") for name in json.loads(noted)]
                if sorted(order) == sorted(cells):
                    return order
        distance, fresh = {INPUT: 0}, [INPUT]
        while fresh:
            here = fresh.pop(0)
            for one in links:
                if one.source == here and one.target not in distance:
                    distance[one.target] = distance[here] + 1
                    fresh.append(one.target)
        left = sorted(cells, key=lambda name: distance.get(name, len(cells)))
        order = []
        while left:
            free = [name for name in left if not _waits(name, left, links)]
            order.append((free or left)[0])
            left.remove(order[-1])
        return order


def _waits(name: str, left: list[str], links: list[Link]) -> bool:
    """Return whether a population receives something from another that has not had its turn."""
    return any(one.target == name and one.source in left and one.source != name for one in links)


def _spread(cell: Cell, links: list[Link], name: str) -> Cell:
    """Return a cell with the size of what leads to it, if its constants are given only once."""
    outputs = [len(one.weight) for one in links if one.target == name and one.weight is not None]
    plain = [one for one in links if one.target == name and one.grid is None]
    if cell.units == 1 and plain and outputs and outputs[0] > 1:
        return cell.spread((outputs[0],))
    return cell


def _plain(value: Any) -> Any:
    """Return a note as text, number or array."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value
