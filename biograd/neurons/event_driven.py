"""Leaky integrate-and-fire neurons in continuous time."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from biograd.checking import Positive
from biograd.errors import CapabilityError
from biograd.neurons.neuron import Neuron


@dataclasses.dataclass(frozen=True)
class EventDriven(Neuron):
    """Spike times in continuous time with their exact derivatives (``events.spike_times``).

    The equations are those of ``Leaky`` with reset "subtract", solved in closed form between
    spikes; there is no step, and no surrogate.
    """

    time_constant_ms: Positive = 10.0
    synaptic_time_constant_ms: Positive = 5.0
    resistance: Positive = 1.0
    threshold: Positive = 1.0

    name: ClassVar[str] = "event_driven"

    @property
    def variables(self) -> tuple[str, ...]:
        """There is no state from step to step.

        Raises:
            CapabilityError: in every case.
        """
        raise CapabilityError(
            "neuron.kind = 'event_driven': spike times in continuous time are no steps: needs "
            "network.kind = 'spiking', network.substrate = 'torch'"
        )
