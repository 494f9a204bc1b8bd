"""Quadratic integrate-and-fire neurons, which begin their spikes by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from biograd.neurons.neuron import PerNeuron, Spiking, State


@dataclasses.dataclass(frozen=True)
class Quadratic(Spiking):
    """``tau dv/dt = v (v - critical) / critical + R I``, a spike where v > threshold, then v = 0.

    Below ``critical`` the potential decays, above it runs away.
    """

    time_constant_ms: PerNeuron = 10.0
    resistance: PerNeuron = 1.0
    critical: PerNeuron = 0.5
    threshold: PerNeuron = 1.0

    name: ClassVar[str] = "quadratic"

    @property
    def variables(self) -> tuple[str, ...]:
        return ("v",)

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        return {
            "rate": dt / p.time_constant_ms,
            "resistance": p.resistance,
            "critical": p.critical,
            "threshold": p.threshold,
        }

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        v = x.v * (1 - held)
        drift = v * (v - c.critical) / c.critical + c.resistance * into.I
        return x._replace(v=v + c.rate * drift)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        return x.v - c.threshold
