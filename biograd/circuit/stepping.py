"""Populations that feed each other, stepped together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biograd.circuit.graph import SKIP, Graph, Projection
from biograd.contracts import Transport
from biograd.contracts.credit_paths import join, mapped, starts
from biograd.contracts.trial_part import State
from biograd.errors import CapabilityError
from biograd.substrate.normalisation import Dropout

Carried = Callable[[Projection, Tensor], Tensor]
"""What a projection makes of its source's activity."""


class Stepped(nn.Module):
    """A population that takes one step with every call.

    Attributes:
        transport: how credit passes back; a substrate sets it for the time of a pass.
        passed: what the population passed on in the last step, with its graph.
    """

    transport = Transport()

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer
        self.passed: Tensor | None = None
        self._states: list[State] = []
        self._index = 0

    @property
    def variables(self) -> int:
        """The number of variables of the state."""
        return int(self.layer.variables)

    @property
    def width(self) -> int:
        """The number of values that the population passes on in a step."""
        return int(getattr(self.layer, "width", self.layer.units))

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
        self.layer.__dict__["transport"] = self.transport
        self._states, self._index = [self.layer.begin(like)], 0

    def check_end(self) -> None:
        """Refuse states that are not finite."""
        assert self.passed is not None
        self.layer.check_end(self._states[0], self.passed)

    def end(self) -> None:
        """Forget the states, which hold the graph of the trial."""
        self._states, self.passed = [], None
        self.layer.__dict__.pop("transport", None)

    def forward(self, currents: Mapping[str, Tensor]) -> Tensor:
        """Return what the population passes on in this step, ``[rows, units]``.

        Args:
            currents: by port, ``[rows, units]``.
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


class Together:
    """A trial of populations that feed each other, step by step.

    Attributes:
        seen: what others saw of each population, a tensor ``[rows, units]`` for each step.
        own: what it saw of itself: credit that is stopped behind it still passes there.
    """

    def __init__(
        self,
        graph: Graph,
        group: Sequence[str],
        modules: Mapping[str, nn.Module],
        driven: Mapping[str, Tensor],
        carried: Carried,
    ) -> None:
        self.graph, self.group, self.modules = graph, group, modules
        self.cells = {name: _stepped(module) for name, module in modules.items()}
        self.driven, self.carried = driven, carried
        self.into = {
            name: {port: graph.into(name, port) for port in (*graph.blocks[name].ports, SKIP)}
            for name in group
        }
        first = next(iter(driven.values()))
        self.silent = {n: first.new_zeros(len(first), self.cells[n].width) for n in group}
        self.seen: dict[str, list[Tensor]] = {name: [] for name in group}
        self.own: dict[str, list[Tensor]] = {name: [] for name in group}

    def run(self, steps: int) -> dict[str, Tensor]:
        """Return the course of every population, ``[rows, steps, units]``."""
        try:
            for name in self.group:
                cell = self.cells[name]
                cell.begin(self.silent[name][:, None, : cell.layer.units])
                for part in self._dropouts(name):
                    part.begin()
            for index in range(steps):
                for name in self.group:
                    self._step(name, index)
            for cell in self.cells.values():
                cell.check_end()
        finally:
            for name, cell in self.cells.items():
                cell.end()
                for part in self._dropouts(name):
                    part.end()
        return {name: torch.stack(values, 1) for name, values in self.seen.items()}

    def _dropouts(self, name: str) -> list[Dropout]:
        return [part for part in self.modules[name].modules() if isinstance(part, Dropout)]

    def _step(self, name: str, index: int) -> None:
        currents = {
            port: added([self._arriving(one, index) for one in into])
            for port, into in self.into[name].items()
            if port != SKIP
        }
        module = self.modules[name]
        if isinstance(module, Stepped):
            self.seen[name].append(module(currents))
            assert module.passed is not None
            self.own[name].append(module.passed)
        else:
            skips = [self._arriving(one, index) for one in self.into[name][SKIP]]
            self.seen[name].append(module(currents, None, skips, self.own[name]))

    def _arriving(self, one: Projection, index: int) -> Tensor:
        """Return what a projection brings in a step."""
        if one.path in self.driven:
            drive = self.driven[one.path]
            return mapped(lambda part: part[:, index if part.shape[1] > 1 else 0], drive)
        if one.longest is None:
            return self.carried(one, self._sent(one, index, index - one.lag))
        past = range(index - one.lag - one.longest, index - one.lag + 1)
        return self.carried(one, torch.cat([self._sent(one, index, place) for place in past], 1))

    def _sent(self, one: Projection, index: int, place: int) -> Tensor:
        """Return what the source passed on in step ``place``, as it is seen in step ``index``."""
        if place < 0:
            return self.silent[one.source]
        source = (self.own if one.source == one.target else self.seen)[one.source][place]
        window = self.cells[one.target].transport.window
        cut = window and self.graph.back(one) and place // window != index // window
        return source.detach() if cut else source


def _stepped(module: nn.Module) -> Stepped:
    """Return the neurons of a block."""
    found = module if isinstance(module, Stepped) else module.get_submodule("activity")
    assert isinstance(found, Stepped)
    return found


def added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of currents."""
    return parts[0] if len(parts) == 1 else mapped(_sum, *parts)


def _sum(*parts: Tensor) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
