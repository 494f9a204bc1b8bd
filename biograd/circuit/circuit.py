"""One network for every simulator: populations in any graph of projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.circuit.graph import INPUT, SKIP, Block, Graph, Listened, Projection
from biograd.circuit.stepping import Stepped, Together, added
from biograd.contracts import Site
from biograd.encoding import Encoding
from biograd.errors import CapabilityError
from biograd.process.threads import Turn
from biograd.substrate.network import Network


class Transformed(nn.ModuleDict):
    """A population with what is done to its current and to what it passes on.

    Args:
        before: names of the children that transform the current.
        after: names of those that transform what is passed on.
    """

    activity: nn.Module

    def __init__(self, before: Sequence[str], after: Sequence[str]) -> None:
        super().__init__()
        self.before, self.after = tuple(before), tuple(after)

    def forward(
        self,
        current: Any,
        recurrent: nn.Module | None = None,
        skip: Sequence[Tensor] = (),
        own: list[Tensor] | None = None,
    ) -> Tensor:
        """Return what leaves the block.

        Args:
            current: ``[rows, ...]``, by port if there are several; the first is transformed.
            recurrent: maps what the neurons passed on in the step before to more current.
            skip: what is added behind the neurons.
            own: where to put what leaves the block, as the block itself sees it.
        """
        for name in self.before:
            transform = self.get_submodule(name)
            if isinstance(current, Mapping):
                first = next(iter(current))
                current = {**current, first: transform(current[first])}
            else:
                current = transform(current)
        passed = self.activity(current) if recurrent is None else self.activity(current, recurrent)
        for name in self.after:
            passed = self.get_submodule(name)(passed)
        for one in skip:
            passed = one + passed
        if own is not None:
            own.append(passed)
        found: Tensor = passed
        return found


class Circuit(Network):
    """Populations and projections; a readout listens to one population or several.

    In a step the populations are run through in their order.  What arrives at a port of a
    population is a site, named after the population; the sites of further ports,
    ``population.port``, enter the same block.  A projection's bias acts in every step, whatever its
    delay.  Where credit is stopped behind a population it still passes through what the population
    feeds to itself, as in a recurrent layer.  Where credit through time is cut
    (``Transport.window``) it is also cut in projections that lead back; what leads forward only
    shifts time.

    Args:
        parts: populations in the order of a step, and projections; those of a site together, the
            one that carries the noise first.
        readout: between the last population and the outputs.
        encoding: of the inputs; None: there is no time.
        filtered: what the readout receives of the population's course.
        behind: what is made of the readout's current in every step; the outputs then have a time
            axis, ``[rows, steps, outputs]``.
        output: path of the population to which the readout listens, "": the last; or what it hears
            of several, side by side.
        simulator: who computes the populations.

    Raises:
        CapabilityError: a port that receives nothing.
    """

    _layers: dict[str, nn.Module]

    def __init__(
        self,
        parts: Sequence[Block | Projection],
        readout: nn.Module,
        encoding: Encoding | None = None,
        filtered: nn.Module | None = None,
        behind: nn.Module | None = None,
        output: str | Sequence[Listened] = "",
        simulator: str = "torch",
    ) -> None:
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps if encoding else 1
        self.graph = graph = Graph(parts, timed=encoding is not None)
        if isinstance(output, str):
            output = (Listened(output or (graph.order[-1] if graph.order else INPUT)),)
        self.heard, self.output = tuple(output), output[0].path
        self.simulator = simulator
        self.spiking = bool(graph.blocks) and all(one.spiking for one in graph.blocks.values())
        for one in graph.blocks.values():
            for port in one.ports:
                if not graph.into(one.path, port):
                    raise CapabilityError(f"population {one.site!r}: nothing leads to its {port!r}")
        for part in parts:
            self._place(part)
        if filtered is not None:
            self.filtered = filtered
        self.readout = readout
        if behind is not None:
            self.behind = behind
        self._turn = Turn()
        timed = behind is not None
        self.sites = (*graph.sites, Site("readout", ("readout",), (timed,)))
        self.populations = tuple(one.path + one.inner for one in graph.blocks.values())
        if any(not one.inner for one in graph.blocks.values()):
            self.ends = tuple(one.site for one in graph.blocks.values())

    def _place(self, one: Block | Projection) -> None:
        if isinstance(one, Projection):
            if one.layer is not None:
                _put(self, one.path, one.layer)
        elif one.inner:
            _put(self, one.path, Transformed(tuple(one.before), tuple(one.after)))
            cells = Stepped(one.cells) if one.path in self.graph.together else one.cells
            named = {**one.before, one.inner[1:]: cells, **one.after}
            for name, module in named.items():
                _put(self, f"{one.path}.{name}", module)
        else:
            stepped = one.path in self.graph.together
            _put(self, one.path, Stepped(one.cells) if stepped else one.cells)

    def layer(self, name: str) -> Any:
        """Return the neurons of a population of a circuit by the name of its site."""
        for one in self.graph.blocks.values():
            if one.site == name:
                return one.cells
        raise KeyError(name)

    def fires(self, population: str) -> bool:
        """Return whether a population's activity is spikes."""
        blocks = self.graph.blocks.values()
        return any(one.spiking for one in blocks if one.path + one.inner == population)

    def spikes_into(self, layer: str) -> bool:
        """Return whether a projection, or the readout, receives spikes and not analogue values."""
        sources = {one.path: one for one in self.graph.projections}
        found = sources.get(layer)
        if found is not None and found.before is not None and not _keeps_spikes(found.before):
            return False
        if found is None and not all(one.spiking for one in self.heard):
            return False
        source = found.source if found is not None else self.output
        if source == INPUT:
            return self.encoding is not None and self.encoding.spikes
        changed = self.graph.blocks[source].after or self.graph.into(source, SKIP)
        return self.graph.blocks[source].spiking and not changed

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, outputs]``, or ``[rows, steps, outputs]``.

        Args:
            encoded: ``[rows, steps or 1, units]``; without time ``[rows, ...]``.
        """
        layers = {
            one.path: self.get_submodule(one.path)
            for one in self.graph.projections
            if one.layer is not None
        }
        self.__dict__["_layers"] = layers  # of now: they may have been replaced
        course: dict[str, Tensor] = {INPUT: encoded}
        for group in self.graph.groups:
            if group[0] in self.graph.together:
                with self._turn:  # the cells hold one trial
                    course |= self._stepped(group, course)
            else:
                course[group[0]] = self._whole(self.graph.blocks[group[0]], course)
        parts = [one.of(course) for one in self.heard]
        last = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        outputs: Tensor = self.readout(self.filtered(last) if hasattr(self, "filtered") else last)
        return self.behind(outputs) if hasattr(self, "behind") else outputs

    def _carried(self, one: Projection, activity: Tensor) -> Tensor:
        if one.before is not None:
            activity = one.before(activity)
        if one.layer is None:
            return activity
        found: Tensor = self._layers[one.path](activity)
        return found

    def _arriving(
        self, name: str, port: str, course: Mapping[str, Tensor], inside: Sequence[str]
    ) -> list[Tensor]:
        return [
            self._carried(one, self._sent(one, course))
            for one in self.graph.into(name, port)
            if one.source not in inside
        ]

    def _sent(self, one: Projection, course: Mapping[str, Tensor]) -> Tensor:
        """Return the course of a source as it arrives, ``[rows, steps or 1, units]``."""
        sent = later(course[one.source], one.lag, self.steps)
        return sent if one.longest is None else sent.expand(-1, self.steps, -1)

    def _whole(self, one: Block, course: Mapping[str, Tensor]) -> Tensor:
        currents = {
            port: added(self._arriving(one.path, port, course, (one.path,))) for port in one.ports
        }
        module = self.get_submodule(one.path)
        if not one.inner:
            found: Tensor = module(currents)
            return found
        loops = [p for p in self.graph.projections if p.source == one.path == p.target]
        skips = self._arriving(one.path, SKIP, course, ())
        current = currents if len(one.ports) > 1 else currents[one.ports[0]]
        recurrent = self._layers[loops[0].path] if loops else None
        whole: Tensor = module(current, recurrent, skips)
        return whole

    def _stepped(self, group: Sequence[str], course: Mapping[str, Tensor]) -> dict[str, Tensor]:
        driven = {
            one.path: self._carried(one, self._sent(one, course))
            for one in self.graph.projections
            if one.target in group and one.source not in group
        }
        modules = {name: self.get_submodule(name) for name in group}
        return Together(self.graph, group, modules, driven, self._carried).run(self.steps)


def _keeps_spikes(before: nn.Module) -> bool:
    """Return whether what stands before a layer passes spikes on as spikes."""
    return isinstance(before, nn.Flatten) or bool(getattr(before, "keeps_spikes", False))


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Place a module at a dotted path; containers are made where they are missing."""
    *parents, name = path.split(".")
    for parent, child in zip(parents, [*parents[1:], name], strict=True):
        if parent not in root._modules:
            root.add_module(parent, nn.ModuleList() if child.isdigit() else nn.ModuleDict())
        root = root.get_submodule(parent)
    if name in root._modules:  # a projection that was placed first is a child of its block
        for child, part in root.get_submodule(name).named_children():
            module.add_module(child, part)
    root.add_module(name, module)


def later(course: Tensor, lag: int, steps: int) -> Tensor:
    """Return a course ``[rows, steps or 1, units]`` delayed by ``lag`` steps."""
    if not lag:
        return course
    course = course.expand(-1, steps, -1)
    return functional.pad(course, (0, 0, lag, 0))[:, :steps]
