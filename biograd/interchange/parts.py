"""What a NIR graph is made of: populations, and ways from one to the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from biograd.errors import CapabilityError, RecipeError
from biograd.interchange.nir_neuron import NirNeuron


@dataclasses.dataclass
class PopulationNodes:
    """The nodes that make a population: where it receives, where it sends, what it is.

    Attributes:
        path: of its module.
        shape: in which its neurons lie.
        main: node of the neurons.
        loop: node by which a spike inhibits its own neuron.
    """

    path: str
    entry: str
    exit: str
    cell: NirNeuron
    shape: tuple[int, ...]
    main: str
    loop: str = ""

    @property
    def units(self) -> int:
        """The number of neurons."""
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Connection:
    """Nodes from the input or a population to a population or the output.

    Attributes:
        path: of the module with the weights.
        weight: their node; "": there is none.
        pool: node that reduces the grid first; "": there is none.
        delay_ms: beside the step that a loop takes.
        axons_ms: what each unit of the source adds to it; empty: nothing.
    """

    path: str
    source: str
    target: str
    weight: str = ""
    pool: str = ""
    delay_ms: float = 0.0
    axons_ms: tuple[float, ...] = ()


def flat(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return nodes and edges, those of graphs within the graph put in their place."""
    nodes, edges = {}, [(prefix + a, prefix + b) for a, b in graph.edges]
    for name, node in graph.nodes.items():
        if type(node).__name__ != "NIRGraph":
            nodes[prefix + name] = node
            continue
        own = f"{prefix}{name}"
        inner, ways = flat(node, f"{own}.")
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


def notes_of(node: Any) -> dict[str, Any]:
    """Return what a graph or a node notes beside its values.

    Raises:
        RecipeError: it notes something else than a table.
    """
    given = node.metadata or {}
    if not isinstance(given, Mapping):
        raise RecipeError(f"metadata of a {type(node).__name__}: must be a table")
    return {str(key): plain(value) for key, value in given.items()}


def plain(value: Any) -> Any:
    """Return a note as text, number or array."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value
