"""Circuits: populations of Brian2 neurons in any graph of projections, with loops and delays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Site, Transport
from biograd.encoding import Encoding
from biograd.errors import CapabilityError
from biograd.networks.brian import Brian2Layer
from biograd.threads import Turn
from biograd.networks.network import Network
from biograd.credit_paths import join, mapped, starts
from biograd.networks.readouts import Readout
from biograd.networks.spiking import State

INPUT = "input"
"""What the encoded data are called as the source of a projection."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """Where a layer leads from and to, and after how many steps what it carries arrives.

    Attributes:
        variable: of the target, that receives it.
    """

    name: str
    source: str
    target: str
    variable: str
    lag: int


class Stepped(nn.Module):
    """A population that takes one step with every call.

    Attributes:
        transport: how credit passes back; a substrate sets it for the time of a pass.
        passed: what the population passed on in the last step, with its graph.
    """

    transport = Transport()

    def __init__(self, layer: Brian2Layer) -> None:
        super().__init__()
        self.layer = layer
        self.passed: Tensor | None = None
        self._states: list[State] = []
        self._index = 0

    @property
    def variables(self) -> int:
        """The number of variables of the state."""
        return self.layer.variables

    def begin(self, like: Tensor) -> None:
        """Put the population where a trial begins.

        Args:
            like: ``[rows, 1, units]``; of it, shape and dtype.
        """
        if self.transport.slots:
            raise CapabilityError(
                "a circuit whose projections lead back: no states can be handed from window to "
                "window, since spikes also cross from population to population"
            )
        self._states, self._index = [self.layer.begin(like)], 0

    def end(self) -> None:
        """Forget the states, which hold the graph of the trial."""
        self._states, self.passed = [], None

    def forward(self, currents: Mapping[str, Tensor]) -> Tensor:
        """Return what the population passes on in this step, ``[rows, units]``.

        Args:
            currents: by input variable, ``[rows, units]``.
        """
        ways, found = self.layer.ways(currents), []
        if not self._index:
            self._states = self._states * len(ways)
        for place, (drives, window) in enumerate(ways):
            state = self._states[place]
            if starts(self._index, window):
                state = tuple(values.detach() for values in state)
            self._states[place], passed = self.layer.advance(state, drives, None, not place)
            found.append(passed)
        self._index += 1
        self.passed = join(found)
        return self.passed


class Circuit(Network):
    """Populations and projections; a linear readout listens to one population.

    In a step the populations are run through in their order.  If no projection leads back, each
    population is simulated over the whole trial before the next; else all of them step by step.

    What arrives at an input variable of a population is a site, named after the population; the
    sites of further variables, ``population.variable``, enter the same block.  A projection's bias
    acts in every step, whatever its delay.  Where credit is stopped behind a population it still
    passes through what the population feeds to itself, as in a recurrent layer.  Where credit
    through time is cut (``Transport.window``) it is also cut in projections that lead back; what
    leads forward only shifts time.

    Args:
        populations: by name, in the order of a step.
        projections: their layers by name, those of a site together, the one that carries the noise
            first.
        wiring: where each leads.
        encoding: of the inputs.
        readout: between the last population and the outputs.
        filtered: what the readout receives of the population's course.
        output: the population to which the readout listens; "": the last.

    Raises:
        CapabilityError: an input variable that receives nothing.
    """

    simulator = "brian2"

    def __init__(
        self,
        populations: Mapping[str, Brian2Layer],
        projections: Mapping[str, nn.Module],
        wiring: Iterable[Projection],
        encoding: Encoding,
        readout: nn.Module,
        filtered: Readout,
        output: str = "",
    ) -> None:
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps
        self.wiring, self.order = tuple(wiring), tuple(populations)
        self.output = output or self.order[-1]
        self.spiking = all(c.model.recipe.output == "spikes" for c in populations.values())
        self.looped = any(self.back(one) for one in self.wiring)
        self.cells = nn.ModuleDict(
            {n: Stepped(cell) if self.looped else cell for n, cell in populations.items()}
        )
        self.projections = nn.ModuleDict(projections)
        self.filtered, self.readout = filtered, readout
        self._turn = Turn()
        hidden = [site for name in self.order for site in self._sites(name)]
        self.sites = (*hidden, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"cells.{name}" for name in self.order)
        self.ends = self.order

    def layer(self, name: str) -> Brian2Layer:
        """Return the neurons of a population."""
        cell = self.cells[name]
        found = cell.layer if isinstance(cell, Stepped) else cell
        assert isinstance(found, Brian2Layer)
        return found

    def back(self, one: Projection) -> bool:
        """Return whether a projection leads to its own source or to what stands before it."""
        return one.source != INPUT and self.order.index(one.source) >= self.order.index(one.target)

    def into(self, name: str, variable: str) -> list[Projection]:
        """Return what leads to a variable of a population, what carries the noise first."""
        return [one for one in self.wiring if (one.target, one.variable) == (name, variable)]

    def _sites(self, name: str) -> list[Site]:
        """Return the sites of a population: what flows into each of its input variables."""
        found = []
        for variable in reversed(self.layer(name).model.ports):
            into = self.into(name, variable)
            if not into:
                raise CapabilityError(f"population {name!r}: nothing leads to its {variable!r}")
            layers = tuple(f"projections.{one.name}" for one in into)
            time = tuple(not self.looped or one.source == INPUT for one in into)
            main = variable == self.layer(name).model.port
            found.append(
                Site(
                    name if main else f"{name}.{variable}",
                    layers,
                    time,
                    f"cells.{name}",
                    block=None if main else name,
                    inner=tuple(f"projections.{one.name}" for one in into if one.source == name),
                )
            )
        return found

    def spikes_into(self, layer: str) -> bool:
        """Return whether a projection, or the readout, receives spikes and not analogue values."""
        sources = {f"projections.{one.name}": one.source for one in self.wiring}
        source = sources.get(layer, self.output)
        if source == INPUT:
            return self.encoding is not None and self.encoding.spikes
        return bool(self.layer(source).model.recipe.output == "spikes")

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]`` for ``[rows, steps or 1, units]``."""
        course = self._by_steps(encoded) if self.looped else self._by_populations(encoded)
        return self.readout(self.filtered(course))

    def _by_populations(self, encoded: Tensor) -> Tensor:
        courses = {INPUT: encoded}
        for name in self.order:
            arriving = {
                variable: _added(
                    [
                        self.projections[one.name](self._later(courses[one.source], one.lag))
                        for one in self.into(name, variable)
                    ]
                )
                for variable in self.layer(name).model.ports
            }
            courses[name] = self.cells[name](arriving)
        return courses[self.output]

    def _later(self, course: Tensor, lag: int) -> Tensor:
        """Return a course ``[rows, steps or 1, units]`` delayed by ``lag`` steps."""
        if not lag:
            return course
        course = course.expand(-1, self.steps, -1)
        return functional.pad(course, (0, 0, lag, 0))[:, : self.steps]

    def _by_steps(self, encoded: Tensor) -> Tensor:
        with self._turn:  # the cells hold one trial
            trial = _Trial(self, encoded)
            try:
                for index in range(self.steps):
                    for name in self.order:
                        trial.step(name, index)
            finally:
                trial.end()
        return torch.stack(trial.seen[self.output], 1)


class _Trial:
    """A trial of a circuit step by step.

    Attributes:
        seen: what others saw of each population, a tensor ``[rows, units]`` for each step.
        own: what it saw of itself: credit that is stopped behind it still passes there.
    """

    def __init__(self, circuit: Circuit, encoded: Tensor) -> None:
        self.circuit = circuit
        cells = {name: circuit.cells[name] for name in circuit.order}
        self.cells = {name: cell for name, cell in cells.items() if isinstance(cell, Stepped)}
        self.driven = {
            one.name: circuit.projections[one.name](circuit._later(encoded, one.lag))
            for one in circuit.wiring
            if one.source == INPUT
        }
        self.silent = {}
        for name, cell in self.cells.items():
            like = encoded.new_zeros(len(encoded), 1, cell.layer.units)
            cell.begin(like)
            self.silent[name] = like[:, 0]
        self.seen: dict[str, list[Tensor]] = {name: [] for name in self.cells}
        self.own: dict[str, list[Tensor]] = {name: [] for name in self.cells}

    def step(self, name: str, index: int) -> None:
        """Let a population take a step."""
        cell, circuit = self.cells[name], self.circuit
        currents = {
            variable: _added([self._arriving(one, index) for one in circuit.into(name, variable)])
            for variable in cell.layer.model.ports
        }
        self.seen[name].append(cell(currents))
        assert cell.passed is not None
        self.own[name].append(cell.passed)

    def _arriving(self, one: Projection, index: int) -> Tensor:
        """Return what a projection brings in a step."""
        if one.source == INPUT:
            drive = self.driven[one.name]
            return mapped(lambda part: part[:, index if part.shape[1] > 1 else 0], drive)
        layer, place = self.circuit.projections[one.name], index - one.lag
        if place < 0:
            return layer(self.silent[one.source])
        source = (self.own if one.source == one.target else self.seen)[one.source][place]
        window = self.cells[one.target].transport.window
        if window and self.circuit.back(one) and place // window != index // window:
            source = source.detach()
        return layer(source)

    def end(self) -> None:
        """Forget the states."""
        for cell in self.cells.values():
            cell.end()


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of currents."""
    return parts[0] if len(parts) == 1 else mapped(_sum, *parts)


def _sum(*parts: Tensor) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
