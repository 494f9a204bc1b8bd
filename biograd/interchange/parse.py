"""A NIR graph as populations and what leads from one to the other, node by node."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from biograd.circuit.graph import INPUT
from biograd.errors import CapabilityError, RecipeError
from biograd.interchange.graph_checks import check_step, check_values
from biograd.interchange.nir_neuron import (
    GRADED,
    KEYS,
    Array,
    NirNeuron,
    in_milliseconds,
    milliseconds,
    settled,
)
from biograd.interchange.parts import Connection, PopulationNodes, flat, notes_of
from biograd.interchange.weighing import Read

WEIGHTS = ("Affine", "Linear", "Scale", "Conv2d")
POOLS = ("AvgPool2d", "SumPool2d")
PASSING = ("Flatten", "Delay", *POOLS)
KNOWN = ("Input", "Output", "Threshold", *KEYS, *WEIGHTS, *PASSING)


class Parser:
    """Finds the populations of a graph and the ways between them.

    Args:
        graph: a ``nir.NIRGraph``.
        dt_ms: length of a step; a loop by which a spike inhibits its own neuron depends on it.
        subtracts: whether a spike takes threshold - v_reset from the potential instead of putting
            it there; None: what the node notes.
        read: what of the course is the output; None: what the graph notes.

    Attributes:
        populations: by their path, in the order of a step.
        ways: between them; ``last`` leads to the output.
        leak: node of the readout's leaky integrator; "": there is none.
        read: what of its course, or that of the last population, is the output.
        names: of nodes, see ``Origin``.

    Raises:
        CapabilityError: a node, or a way to connect nodes, that biograd does not know.
        RecipeError: shapes or notes that do not fit.
    """

    def __init__(self, graph: Any, dt_ms: float, subtracts: bool | None, read: Read | None) -> None:
        self.nodes, edges = flat(graph)
        self.notes = notes_of(graph)
        self.dt_ms, self.subtracts = dt_ms, subtracts
        self.before: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.after: dict[str, list[str]] = {name: [] for name in self.nodes}
        for one, two in edges:
            for name in (one, two):
                if name not in self.nodes:
                    raise CapabilityError(f"an edge names {name!r}, which is no node")
            self.before[two].append(one)
            self.after[one].append(two)
        for name in self.nodes:
            if self.kind(name) not in KNOWN:
                raise CapabilityError(
                    f"node {name!r}: biograd has nothing for a {self.kind(name)} (known: "
                    f"{', '.join(KNOWN)})"
                )
        check_values(self.nodes)
        check_step(self.nodes, dt_ms)
        self.names = {"input": self._only("Input"), "output": self._only("Output")}
        given = self.nodes[self.names["input"]].input_type["input"]
        self.shape = tuple(int(size) for size in np.ravel(given))
        self.taken = {f"cells.{name}" for name in (INPUT, "readout")}
        self._find(read or self.notes.get("read"))

    def _find(self, how: Any) -> None:
        """Find populations, ways, and what is read."""
        found = list(self._populations())
        if how not in (None, "mean", "sum", "last", "steps"):
            raise RecipeError(f"read = {how!r}: take 'mean', 'sum', 'last' or 'steps'")
        self.leak = self._leak(found) if how != "sum" else ""
        self.entries = {one.entry: one for one in found if one.main != self.leak}
        if not self.entries:
            raise CapabilityError("a graph without populations: nothing is simulated in time")
        if how == "last" and not self.leak:
            raise CapabilityError(
                "read = 'last': what is read last must be a leaky integrator of weighted spikes"
            )
        sources = {one.exit: one.path for one in self.entries.values()}
        sources = {self.names["input"]: INPUT} | sources
        self.ways, last = list[Connection](), list[Connection]()
        for place, source in sources.items():
            for way in self._from(place):
                target = self.entries.get(way[-1])
                (last if target is None else self.ways).append(self._way(source, way, target))
        if len(last) != 1 or last[0].source == INPUT:
            said = "no population leads to it"
            said = "it sums what several nodes bring; one is read" if len(last) > 1 else said
            raise CapabilityError(f"node {self.names['output']!r}: {said}")
        (self.last,) = last
        if self.leak:
            self.names = {k: v for k, v in self.names.items() if v != self.leak}
            self.names["readout.leak"] = self.leak
        by_path = {one.path: one for one in self.entries.values()}
        spikes = by_path[self.last.source].cell.spiking
        self.read: Read = how or ("sum" if spikes and not self.leak else "mean")
        self.populations = {path: by_path[path] for path in self._order()}

    def kind(self, name: str) -> str:
        """Return what kind of node has a name."""
        return type(self.nodes.get(name)).__name__

    def _sole(self, name: str) -> str:
        """Return the only node that leads to one; "": there are several, or none."""
        return self.before[name][0] if len(self.before[name]) == 1 else ""

    def noted(self, name: str) -> dict[str, Any]:
        """Return what a node notes."""
        return notes_of(self.nodes[name])

    def _only(self, kind: str) -> str:
        found = [name for name in self.nodes if self.kind(name) == kind]
        if len(found) != 1:
            listed = ", ".join(map(repr, found)) or "none"
            raise CapabilityError(f"a graph needs one {kind} node, found {listed}")
        return found[0]

    # Populations

    def _populations(self) -> Iterator[PopulationNodes]:
        used: set[str] = set()
        for name in [name for name in self.nodes if self.kind(name) == "Threshold"]:
            found = self._split(name)
            used |= {found.entry, found.main}
            yield found
        for name in self.nodes:
            if name not in used and self.kind(name) in KEYS:
                cell, shape = self._cell(name)
                yield PopulationNodes(
                    self._path(name), name, name, self._reset(name, cell), shape, name
                )

    def _split(self, threshold: str) -> PopulationNodes:
        """Return a population whose threshold is a node of its own."""
        main = self._sole(threshold)
        if not main or self.kind(main) not in GRADED or self.after[main] != [threshold]:
            raise CapabilityError(
                f"node {threshold!r}: a threshold needs a node {', '.join(GRADED)} in front of it "
                "that leads to nothing else"
            )
        (cell, shape), path = self._cell(main), self._path(main)
        at = self._values(threshold, "threshold", int(np.prod(shape)))
        cell = dataclasses.replace(cell, threshold=at)
        self.names[f"{path}.spikes"] = threshold
        found = PopulationNodes(path, main, threshold, cell, shape, main)
        loop = next((one for one in self.after[threshold] if self._loops(one, main)), "")
        if not loop:
            return found
        self.names[f"{path}.reset"] = found.loop = loop
        cell = dataclasses.replace(cell, taken=self._taken(loop, cell, found.units))
        others = [one for one in self.before[main] if one != loop]
        if len(others) == 1 and self._filters(others[0], main):
            self.names[f"{path}.filter"] = found.entry = others[0]
            tau, weight = (self._values(found.entry, key, found.units) for key in ("tau", "r"))
            cell = dataclasses.replace(
                cell, synaptic_time_constant_ms=in_milliseconds(tau), weight=weight
            )
        found.cell = cell
        return found

    def _loops(self, name: str, main: str) -> bool:
        """Return whether a node leads what spikes to the potential, not through a filter."""
        ends = self.after[name] == [main] and len(self.before[name]) == 1
        return self.kind(name) == "Scale" and ends and self.kind(main) in ("LI", "I")

    def _taken(self, loop: str, cell: NirNeuron, units: int) -> Array:
        """Return what a spike takes from the potential through a loop."""
        if self.noted(loop).get("takes") == "threshold":
            return np.asarray(cell.threshold)
        return -self._values(loop, "scale", units) * cell.gain(self.dt_ms)

    def _filters(self, name: str, main: str) -> bool:
        """Return whether a leaky integrator is the synaptic filter of a population."""
        leaks = self.kind(name) == "LI" and not np.any(self.nodes[name].v_leak)
        return leaks and self.after[name] == [main] and bool(self.before[name])

    def _cell(self, name: str) -> tuple[NirNeuron, tuple[int, ...]]:
        """Return the constants of a node, and the shape of its neurons."""
        keys = KEYS[self.kind(name)]
        shape = tuple(int(size) for size in np.shape(self.nodes[name].r)) or (1,)
        wide = [one for one in self.before[name] if self.kind(one) in ("Affine", "Linear")]
        if shape == (1,) and wide:  # constants are given once for all
            shape = (len(self.nodes[wide[0]].weight),)
        values: dict[str, Any] = {
            own: self._values(name, key, int(np.prod(shape))) for own, key in keys.items()
        }
        for own in values.keys() & {"time_constant_ms", "synaptic_time_constant_ms"}:
            if (values[own] <= 0).any():
                raise RecipeError(f"node {name!r}: {keys[own]} must be above zero")
            values[own] = in_milliseconds(values[own])
        return NirNeuron(**values), shape

    def _reset(self, name: str, cell: NirNeuron) -> NirNeuron:
        """Return a cell whose spikes subtract, if they do."""
        noted = self.noted(name).get("reset") == "subtract"
        subtracts = noted if self.subtracts is None else self.subtracts
        if cell.reset is None or not subtracts:
            return cell
        return dataclasses.replace(cell, reset=None, taken=cell.threshold - cell.reset)

    def _values(self, name: str, key: str, units: int) -> Array:
        value = np.asarray(getattr(self.nodes[name], key), np.float64).ravel()
        if value.size not in (1, units) or not np.isfinite(value).all():
            raise RecipeError(
                f"node {name!r}: {key} has {value.size} values for {units} neurons, or some that "
                "are not finite"
            )
        return np.broadcast_to(value, (units,)).copy()

    def _path(self, name: str, room: str = "cells") -> str:
        """Return the path that a node's module gets, that which it had if biograd wrote it."""
        base = re.sub(r"\W", "_", name)
        own = r"blocks_(\d+)" if room == "cells" else r"blocks_(\d+)_(synapse|recurrent)"
        if re.fullmatch(own, base):
            path = base.replace("_", ".")
        else:
            usable = base.isidentifier() and not hasattr(nn.ModuleDict(), base)
            path = f"{room}.{base if usable else f'node_{base}'}"
        while path in self.taken:
            path += "_"
        self.taken.add(path)
        self.names[path] = name
        return path

    # What connects them

    def _leak(self, populations: Sequence[PopulationNodes]) -> str:
        """Return the leaky integrator of weighted spikes that is part of the readout."""
        stop = self.names["output"]
        one = next((p for p in populations if self.before[stop] == [p.main]), None)
        if one is None or self.kind(one.main) != "LI" or self.after[one.main] != [stop]:
            return ""
        alike = all(isinstance(settled(value), float) for value in one.cell.given().values())
        weights = self._sole(one.main)
        dense = self.kind(weights) in ("Affine", "Linear") and self.after[weights] == [one.main]
        if not alike or np.any(one.cell.rest) or not dense:
            return ""
        here = self._sole(weights)
        for _ in self.nodes:
            here = self._sole(here) if self.kind(here) == "Flatten" else here
        graded = one.main not in self._noted_order([one.main])  # biograd's order lacks its readout
        read = any(here == each.exit and (each.cell.spiking or graded) for each in populations)
        return one.main if read and not {"mask", "sign"} & self.noted(weights).keys() else ""

    def _noted_order(self, otherwise: list[str]) -> list[str]:
        """Return the nodes that the graph notes as the order of a step; ``otherwise``: none are."""
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            noted = json.loads(self.notes.get("order", ""))
            if isinstance(noted, list):
                return noted
        return otherwise

    def _from(self, place: str) -> Iterator[list[str]]:
        """Yield the nodes on each way from a place to a population or the output, which ends it."""
        loops = {one.loop for one in self.entries.values()} - {""}
        open_ways = [[name] for name in self.after[place] if name not in loops]
        if not open_ways and place != self.names["input"]:
            raise CapabilityError(f"node {place!r}: it leads nowhere")
        while open_ways:
            way = open_ways.pop(0)
            here = way[-1]
            if here in self.entries or here == self.names["output"]:
                yield way
                continue
            if self.kind(here) not in (*WEIGHTS, *PASSING) and here != self.leak:
                raise CapabilityError(f"node {here!r}: nothing can lead to a {self.kind(here)}")
            if len(self.before[here]) > 1:
                raise CapabilityError(
                    f"node {here!r}: it sums what several nodes bring; only a population does"
                )
            if not self.after[here]:
                raise CapabilityError(f"node {here!r}: it leads nowhere")
            if len(self.after[here]) > 1 and self.kind(here) in WEIGHTS:
                raise CapabilityError(f"node {here!r}: its weights act in several places")
            if here in way[:-1]:
                raise CapabilityError(f"node {here!r}: a loop without a population in it")
            open_ways += [[*way, name] for name in self.after[here]]

    def _way(self, source: str, nodes: list[str], target: PopulationNodes | None) -> Connection:
        """Return the nodes between two populations, or behind the last, by what they are."""
        way = [name for name in nodes[:-1] if name != self.leak]
        weights = [name for name in way if self.kind(name) in WEIGHTS]
        pools = [name for name in way if self.kind(name) in POOLS]
        if len(weights) > 1:
            raise CapabilityError(
                f"node {weights[1]!r}: a layer right behind {weights[0]!r}, no population between"
            )
        if len(pools) > 1 or (pools and weights and way.index(pools[0]) > way.index(weights[0])):
            raise CapabilityError(f"node {pools[-1]!r}: pooling is right behind a population")
        weight, pool = weights[0] if weights else "", pools[0] if pools else ""
        to = "output" if target is None else target.path
        delay, axons = self._delay(way, weights)
        path = "readout"
        if target is None:
            if pool or delay or axons or (weight and self.kind(weight) not in ("Affine", "Linear")):
                raise CapabilityError(
                    f"node {way[-1]!r}: what is read of a population is a Linear or Affine node"
                )
            self.names |= {path: weight} if weight else {}
        elif weight:
            path = self._path(weight, "projections")
        else:
            path = self._path(f"{source}_{to}".replace("cells.", ""), "projections")
            del self.names[path]
        for name in way:
            if name not in weights:
                part = "pool" if name == pool else self.kind(name).lower()
                self.names[f"{path}.{part}"] = name
        return Connection(path, source, to, weight, pool, delay, axons)

    def _delay(self, way: list[str], weights: list[str]) -> tuple[float, tuple[float, ...]]:
        """Return how long a way takes, in milliseconds, and what each unit of its source adds."""
        total, axons = 0.0, np.zeros(1)
        for place, name in enumerate(way):
            if self.kind(name) != "Delay":
                continue
            value = settled(self.nodes[name].delay)
            behind = [w for w in way[:place] if w in weights or self.kind(w) in POOLS]
            if not isinstance(value, float) and behind:
                raise CapabilityError(
                    f"node {name!r}: every unit behind {behind[0]!r} has a delay of its own: put "
                    "it before"
                )
            if any(np.any(getattr(self.nodes[w], "bias", 0)) for w in weights if w in way[:place]):
                raise CapabilityError(f"node {name!r}: it delays a bias, too: put it before")
            if isinstance(value, float):
                total += value
            else:
                axons = axons + np.ravel(value)
        return milliseconds(total), tuple(map(milliseconds, axons.tolist())) if axons.any() else ()

    def _order(self) -> list[str]:
        """Return the order in which a step runs through the populations.

        That which the graph notes; else that of the shortest way from the input, what depends on
        nothing that is still to come before what does.
        """
        paths = [one.path for one in self.entries.values()]
        exits = {one.exit: one.path for one in self.entries.values()}
        order = [exits.get(name, "") for name in self._noted_order([]) if isinstance(name, str)]
        if sorted(order) == sorted(paths):
            return order
        distance, fresh = {INPUT: 0}, [INPUT]
        while fresh:
            here = fresh.pop(0)
            for one in self.ways:
                if one.source == here and one.target not in distance:
                    distance[one.target] = distance[here] + 1
                    fresh.append(one.target)
        left = sorted(paths, key=lambda path: distance.get(path, len(paths)))
        order = []
        while left:
            free = [path for path in left if not _waits(path, left, self.ways)]
            order.append((free or left)[0])
            left.remove(order[-1])
        return order


def _waits(path: str, left: Sequence[str], ways: Sequence[Connection]) -> bool:
    """Return whether a population receives something from another that has not had its turn."""
    return any(one.target == path and one.source in left and one.source != path for one in ways)
