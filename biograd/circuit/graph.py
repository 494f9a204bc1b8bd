"""A network as a graph: populations and the projections between them.

What else is to be known of a network follows from the graph: its sites, its blocks, the modules
whose outputs are activities, and the order in which it is simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from biograd.contracts import Site

INPUT = "input"
"""What the encoded data are called as the source of a projection."""
SKIP = "passed"
"""The port of a projection that is added to what a population passes on, behind its neurons."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A population: its neurons, what is done to their current, and to what they pass on.

    ``path`` and the names in ``before`` and ``after`` are places in the tree of modules, and so
    keys of ``state_dict``.

    Attributes:
        path: of the block.
        cells: the neurons.
        site: name of the site at their current.
        before: transforms of the current (a normalisation), by name.
        after: transforms of what is passed on (dropout), by name.
        inner: path of the neurons in the block; "": they are the block.
        ports: what receives a current.
        whole: whether the activity is what leaves the block, not what leaves the neurons.
        spiking: whether spikes are passed on.
    """

    path: str
    cells: nn.Module
    site: str
    before: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    after: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    inner: str = ".activity"
    ports: tuple[str, ...] = ("I",)
    whole: bool = False
    spiking: bool = False


@dataclasses.dataclass(frozen=True)
class Projection:
    """A layer from a population, or the input, to a port of a population.

    Attributes:
        path: of the layer in the tree of modules.
        layer: None: the source as it is.
        port: of the target; ``SKIP``: what it carries is added behind the neurons.
        lag: after how many steps it arrives.
        before: what is done to the source's activity first, without weights (pooling); it belongs
            here, so that the source's activity stays what its population passes on.
    """

    path: str
    source: str
    target: str
    layer: nn.Module | None
    port: str = "I"
    lag: int = 0
    before: nn.Module | None = None

    @property
    def longest(self) -> int | None:
        """How many steps back the layer looks; None: it sees a step alone."""
        found: int | None = getattr(self.layer, "longest", None)
        return found


@dataclasses.dataclass(frozen=True)
class Listened:
    """What of a population's course the readout receives.

    Attributes:
        path: of the population.
        name: of this part, for whoever reads the outputs.
        part: of the last axis of what the population passes on; None: all.
        spiking: whether it is spikes.
    """

    path: str
    name: str = ""
    part: slice | None = None
    spiking: bool = True

    def of(self, course: Mapping[str, Tensor]) -> Tensor:
        """Return this part of the courses of all populations, ``[rows, steps, units]``."""
        whole = course[self.path]
        return whole if self.part is None else whole[..., self.part]


class Graph:
    """Populations and projections, and what follows from them.

    Args:
        parts: in the order in which their modules are placed, which is that of the parameters.
        timed: whether the network runs in time.

    Attributes:
        blocks: by path, in the order of a step.
        together: path of every population that is stepped with others, to all of these.  Those
            that feed each other are stepped together; one that feeds only itself, with the delay
            of a step, steps in its own loop; every other runs over the whole trial at once.
        groups: the populations in the order of simulation, those that are stepped together in one.
    """

    def __init__(self, parts: Sequence[Block | Projection], timed: bool) -> None:
        self.blocks = {one.path: one for one in parts if isinstance(one, Block)}
        self.projections = [one for one in parts if isinstance(one, Projection)]
        self.order, self.timed = tuple(self.blocks), timed
        self.groups = self._groups()
        self.together = {name: g for g in self.groups for name in g if self._stepped(g)}

    def into(self, name: str, port: str) -> list[Projection]:
        """Return what leads to a port, what carries the noise first."""
        return [one for one in self.projections if (one.target, one.port) == (name, port)]

    def back(self, one: Projection) -> bool:
        """Return whether a projection leads to its own source or to what stands before it."""
        return one.source != INPUT and self.order.index(one.source) >= self.order.index(one.target)

    def _groups(self) -> list[list[str]]:
        """Return the strongly connected components in the order of the flow."""
        sources: dict[str, set[str]] = {name: set() for name in self.order}
        for one in self.projections:
            if one.source != INPUT:
                sources[one.target].add(one.source)
        reach = {name: reached(sources, name) for name in self.order}
        groups: list[list[str]] = []
        for name in self.order:
            if not any(name in group for group in groups):
                both = [
                    n for n in self.order if n == name or (n in reach[name] and name in reach[n])
                ]
                groups.append(both)
        ordered: list[list[str]] = []
        while groups:
            done = {n for group in ordered for n in group}
            ready = next(g for g in groups if all(reach[n] - set(g) <= done for n in g))
            groups.remove(ready)
            ordered.append(ready)
        return ordered

    def _stepped(self, group: Sequence[str]) -> bool:
        own = [p for p in self.projections if p.source in group and p.target in group]
        return len(group) > 1 or any(
            p.lag != 1 or p.longest is not None or not self.blocks[p.target].inner for p in own
        )

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The hidden sites: one for every port of every population."""
        return tuple(site for one in self.blocks.values() for site in self._sites(one))

    def _sites(self, one: Block) -> list[Site]:
        inside = self.together.get(one.path, [one.path])
        neurons = one.path + one.inner
        found = []
        for port in reversed(one.ports):
            into, main = self.into(one.path, port), port == one.ports[0]
            own: tuple[str, ...] | None = tuple(p.path for p in into if p.source == one.path)
            own = None if one.inner and own == tuple(p.path for p in into[1:]) else own
            found.append(
                Site(
                    one.site if main else f"{one.site}.{port}",
                    tuple(p.path for p in into),
                    tuple(self.timed and p.source not in inside for p in into),
                    one.path if one.whole else neurons,
                    block=None if main else one.site,
                    inner=own,
                    population=neurons,
                )
            )
        return found


def reached(ways: Mapping[str, set[str]], start: str) -> set[str]:
    """Return where ways lead from ``start``; itself only if they lead back."""
    found: set[str] = set()
    fresh = [start]
    while fresh:
        more = ways.get(fresh.pop(), set()) - found
        found |= more
        fresh += more
    return found
