"""A network between biograd and NIR: populations, what connects them, what is read, in which steps.

Both ways pass through a sketch: a network is described as one and a sketch written as a graph; a
graph is parsed as one and a network built from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from biograd.circuit.projections import Sign
from biograd.interchange.cells import Array, Cell

INPUT = "input"
"""What the encoded data are called as the source of a link."""
Read = Literal["mean", "sum", "last"]
Part = Literal["", "filter", "spikes", "reset", "delay", "flatten", "leak"]
Names = Mapping[tuple[str, str, str], str]
"""``(kind, owner, part)`` to the name of a node: kind is "cell", "link" or "read"."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a convolution lies over its source: ``(channels, height, width)``, stride, padding."""

    shape: tuple[int, int, int]
    stride: int
    padding: int


@dataclasses.dataclass(frozen=True)
class Link:
    """What leads from the input or a population to a population.

    Attributes:
        weight: ``[outputs, inputs]``; ``[units]``: one to one; ``[out, in, k, k]``: a convolution;
            None: what arrives is passed on as it is.
        delay: in seconds, beside the step that a loop takes.
        mask: which weights exist; None: all.
        grid: of a convolution.
    """

    name: str
    source: str
    target: str
    weight: Array | None
    bias: Array | None = None
    delay: float = 0.0
    mask: Array | None = None
    sign: Sign = "both"
    grid: Grid | None = None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of a population: ``weight x + bias``, through a leaky integrator or not.

    Attributes:
        weight: ``[classes, units]``; None: the population is read as it is.
        tau: time constant of the leaky integrator in seconds; None: there is none.
        r: its resistance.
        how: what of the course over the trial becomes the output.
    """

    source: str
    weight: Array | None
    bias: Array | None = None
    tau: float | None = None
    r: float = 1.0
    how: Read = "mean"


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A network.

    Attributes:
        shape: of the encoded data in a step.
        cells: the populations, in the order in which a step runs through them.
        dt_ms: length of a step; None: not known.
        names: of the nodes, where they are others than the writer would give.
        notes: what NIR has no place for and which changes nothing of what the network computes:
            the encoding, the surrogate; by name.
    """

    shape: tuple[int, ...]
    cells: Mapping[str, Cell]
    links: tuple[Link, ...]
    reading: Reading
    dt_ms: float | None = None
    names: Names = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def back(self, link: Link) -> bool:
        """Return whether a link leads to its own source or to what stands before it."""
        order = list(self.cells)
        return link.source != INPUT and order.index(link.source) >= order.index(link.target)

    def into(self, name: str) -> list[Link]:
        """Return what leads to a population."""
        return [link for link in self.links if link.target == name]

    def renamed(self, cells: Mapping[str, str], links: Mapping[str, str]) -> Sketch:
        """Return the sketch with other names of populations and links; the nodes keep theirs."""
        new: Mapping[str, Mapping[str, str]] = {"cell": cells, "link": links, "read": {}}
        return dataclasses.replace(
            self,
            cells={cells.get(name, name): cell for name, cell in self.cells.items()},
            links=tuple(
                dataclasses.replace(
                    link,
                    name=links.get(link.name, link.name),
                    source=cells.get(link.source, link.source),
                    target=cells.get(link.target, link.target),
                )
                for link in self.links
            ),
            reading=dataclasses.replace(
                self.reading, source=cells.get(self.reading.source, self.reading.source)
            ),
            names={
                (kind, new[kind].get(owner, owner), part): name
                for (kind, owner, part), name in self.names.items()
            },
        )


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a network keeps of the graph that it was made from, so that it is written as that graph.

    Attributes:
        names: of the nodes.
        plain: names of links that were edges without a node, as long as they pass on as it is.
        bare: whether nothing stood between the last population and the output.
        r: resistance of the leaky integrator of the readout; None: the one that makes its mean
            biograd's readout.
        w_in: of the populations whose resistance holds the factor on their input, too.
        shapes: in which the units of the input and the populations lie.
    """

    names: Names = dataclasses.field(default_factory=dict)
    plain: frozenset[str] = frozenset()
    bare: bool = False
    r: float | None = None
    w_in: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def weighing(tau_decay: float | None, how: Read, steps: int) -> tuple[float, float]:
    """Return how biograd's readout follows from what NIR reads: factors of weight and bias.

    With ``x[t] = W s[t] + b`` read over T steps, through a leaky integrator of resistance r whose
    decay in a step is k, or not (r = 1), the output is ``(r / R) W sum_t c[t] s[t] + r m b`` with
    the weights c of ``circuit.readouts``:

    ===================  ====================  ==========================  ===============
    integrator, read     readout               R                           m
    ===================  ====================  ==========================  ===============
    yes, mean            membrane              T / mean_t (1 - k^(t+1))    T / R
    yes, last            filtered_rate         1 / (1 - k)                 1 - k^T
    no, sum              rate                  1                           T
    no, mean             potential             1                           1
    ===================  ====================  ==========================  ===============

    Returns:
        R and m.
    """
    if tau_decay is None:
        return 1.0, float(steps) if how == "sum" else 1.0
    if how == "last":
        return 1 / (1 - tau_decay), 1 - tau_decay**steps
    mean = float(np.mean(1 - tau_decay ** np.arange(steps, 0, -1.0)))
    return steps / mean, mean
