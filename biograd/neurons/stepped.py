"""Populations that are simulated step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from biograd.contracts import Transport
from biograd.contracts.credit_paths import State, hand_over, join, needed, starts, ways


class SteppedPopulation(nn.Module):
    """A population that is simulated step by step.

    Attributes:
        steps: number of time steps of a trial.
        variables: number of variables of the state, spikes included.
        transport: how credit passes back; a substrate sets it for the time of a pass.
        handed: states from window to window that a substrate asks for.
    """

    variables: int
    transport = Transport()
    handed: list[tuple[Tensor, Tensor]]

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``.

        ``recurrent`` maps the spikes of the step before to an additional current.  The state
        starts at rest in every call.

        Raises:
            CapabilityError: credit shall take two ways (``Transport.traces``), but the current
                does not come straight from its layers.
        """
        drives = ways(current, self.transport)
        drives = [(drive.expand(-1, self.steps, -1), window) for drive, window in drives]
        if recurrent is None:
            drives = needed(drives)
        courses = [(drive.unbind(1), window) for drive, window in drives]
        states = [self.begin(current)] * len(drives)
        spikes, train = self.passed(states[0]), []
        for index in range(self.steps):
            found = []
            if self.transport.slots and starts(index, self.transport.window):
                states[0] = hand_over(states[0], self.handed)
                spikes = self.passed(states[0])
            fed = self._fed(recurrent, spikes, index)
            for place, ((drive, window), own) in enumerate(zip(courses, fed, strict=False)):
                state = _given(states[place]) if self._cuts(index, window) else states[place]
                states[place], fired = self.advance(state, drive[index], own, not place)
                found.append(fired)
            spikes = join(found)
            train.append(spikes)
        return torch.stack(train, 1)

    def _fed(self, recurrent: nn.Module | None, spikes: Tensor, index: int) -> list[Tensor | None]:
        """Return what the population feeds to itself in this step, on every way."""
        if recurrent is None:
            return [None, None]
        past = spikes.detach() if self._cuts(index, self.transport.window) else spikes
        return [current for current, _ in ways(recurrent(past), self.transport)]

    def _cuts(self, step: int, window: int | None) -> bool:
        """Return whether no credit passes back from this step, not even to a leaf."""
        return starts(step, window) and not self.transport.slots

    def begin(self, current: Tensor) -> State:
        """Return the state in which a trial begins.

        Args:
            current: ``[rows, steps or 1, units]``; of it, shape and dtype.
        """
        raise NotImplementedError

    def passed(self, state: State) -> Tensor:
        """Return what a population in a state passes on."""
        return state[-1]

    def advance(
        self, state: State, current: Tensor, fed: Tensor | None, first: bool
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
