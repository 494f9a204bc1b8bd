"""Populations that are simulated step by step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from biograd.contracts import Transport
from biograd.contracts.credit_paths import (
    Ways,
    hand_over,
    join,
    mapped,
    needed,
    starts,
    ways,
)
from biograd.contracts.trial_part import State, TrialPart


class SteppedPopulation(nn.Module):
    """A population that is simulated step by step.

    Attributes:
        steps: number of time steps of a trial.
        variables: number of variables of the state, spikes included.
        transport: how credit passes back; a substrate sets it for the time of a pass.
        handed: states from window to window that a substrate asks for.
        part: the part of a trial that is run; None: the whole trial.
    """

    variables: int
    transport = Transport()
    handed: list[tuple[Tensor, Tensor]]
    part: TrialPart | None = None

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(
        self, current: Tensor | Mapping[str, Tensor], recurrent: nn.Module | None = None
    ) -> Tensor:
        """Return spikes ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``.

        Several ports have a current each, by name.  ``recurrent`` maps the spikes of the step
        before to an additional current.  The state starts at rest in every call.

        Raises:
            CapabilityError: credit shall take two ways (``Transport.traces``), but the current
                does not come straight from its layers.
        """
        into = self.trials(current)
        both = self.ways(into) if recurrent is not None else needed(self.ways(into))
        steps, part = self.length, self.part
        courses = [
            ({p: v.expand(-1, steps, -1).unbind(1) for p, v in drives.items()}, window)
            for drives, window in both
        ]
        rest = self.begin(next(iter(into.values())))
        states = [(part and part.begun) or rest] * len(both)
        spikes, train = self.passed(states[0]), []
        for index in range(steps):
            found = []
            if self.transport.slots and starts(index, self.transport.window):
                states[0] = hand_over(states[0], self.handed)
                spikes = self.passed(states[0])
            fed = self._fed(recurrent, spikes, index)
            for place, ((course, window), own) in enumerate(zip(courses, fed, strict=False)):
                state = _given(states[place]) if self._cuts(index, window) else states[place]
                drives = {port: values[index] for port, values in course.items()}
                states[place], fired = self.advance(state, drives, own, not place)
                found.append(fired)
            spikes = join(found)
            train.append(spikes)
        self.check_end(states[0], spikes)
        if part is not None:
            part.ended = states[0]
        return torch.stack(train, 1)

    @property
    def length(self) -> int:
        """The number of steps that are run: those of the trial, or of a part of it."""
        return self.steps if self.part is None else self.part.steps

    def _fed(self, recurrent: nn.Module | None, spikes: Tensor, index: int) -> list[Tensor | None]:
        """Return what the population feeds to itself in this step, on every way."""
        if recurrent is None:
            return [None, None]
        past = spikes.detach() if self._cuts(index, self.transport.window) else spikes
        return [current for current, _ in ways(recurrent(past), self.transport)]

    def _cuts(self, step: int, window: int | None) -> bool:
        """Return whether no credit passes back from this step, not even to a leaf."""
        first = 0 if self.part is None else self.part.first
        return starts(first + step, window) and not self.transport.slots

    @property
    def port(self) -> str:
        """The port that receives a current without a name."""
        raise NotImplementedError

    def trials(self, current: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a current for each port, ``[rows, steps or 1, units]``."""
        given = {self.port: current} if isinstance(current, Tensor) else current
        return {
            port: mapped(lambda one: one.unsqueeze(1), v) if v.dim() == 2 else v
            for port, v in given.items()
        }

    def driven(
        self, current: Tensor | Mapping[str, Tensor], fed: Tensor | None
    ) -> dict[str, Tensor]:
        """Return what each port receives in a step, with what the population feeds to itself."""
        into = {self.port: current} if isinstance(current, Tensor) else dict(current)
        if fed is not None:
            into[self.port] = into[self.port] + fed
        return into

    def ways(self, currents: Mapping[str, Tensor]) -> list[Ways]:
        """Return the one or two ways through the currents of all ports."""
        found = {port: ways(values, self.transport) for port, values in currents.items()}
        windows = [window for _, window in next(iter(found.values()))]
        return [
            ({port: parts[place][0] for port, parts in found.items()}, window)
            for place, window in enumerate(windows)
        ]

    def begin(self, current: Tensor) -> State:
        """Return the state in which a trial begins.

        Args:
            current: ``[rows, steps or 1, units]``; of it, shape and dtype.
        """
        raise NotImplementedError

    def passed(self, state: State) -> Tensor:
        """Return what a population in a state passes on."""
        return state[-1]

    def check_end(self, state: State, passed: Tensor) -> None:
        """Refuse the state at the end of a trial if it is not finite; simulators may know."""

    def advance(
        self,
        state: State,
        current: Tensor | Mapping[str, Tensor],
        fed: Tensor | None,
        first: bool,
    ) -> tuple[State, Tensor]:
        """Return the state after one step, and its spikes.

        Args:
            state: of the step before.
            current: from the layer before, ``[rows, units]``.
            fed: from the population's own spikes; None: it is not recurrent.
            first: whether this is the way that carries the value, not a second one of this step.
        """
        raise NotImplementedError


def _given(state: State) -> State:
    """Return the state as one through which no credit passes."""
    return tuple(values.detach() for values in state)
