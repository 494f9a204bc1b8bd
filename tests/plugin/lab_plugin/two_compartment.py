"""Neurons with a soma and an apical dendrite, each with a current of its own."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from biograd.neurons.neuron import PerNeuron, PerNeuronOrZero, Spiking, State


@dataclasses.dataclass(frozen=True)
class TwoCompartment(Spiking):
    """``tau dv/dt = I_basal + coupling d - v``, ``tau_d dd/dt = I_apical - d``; v -= threshold."""

    time_constant_ms: PerNeuron = 10.0
    apical_time_constant_ms: PerNeuron = 30.0
    coupling: PerNeuronOrZero = 0.5
    threshold: PerNeuron = 1.0

    name: ClassVar[str] = "two_compartment"
    ports: ClassVar[tuple[str, ...]] = ("basal", "apical")

    @property
    def variables(self) -> tuple[str, ...]:
        return ("v", "d")

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        return {
            "alpha": f.exp(-dt / p.time_constant_ms),
            "beta": f.exp(-dt / p.apical_time_constant_ms),
            "coupling": p.coupling,
            "threshold": p.threshold,
        }

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        d = c.beta * x.d + (1 - c.beta) * into.apical
        drive = into.basal + c.coupling * d
        return x._replace(
            v=c.alpha * (x.v - c.threshold * held) + (1 - c.alpha) * drive,
            d=d,
        )

    def passed(self, x: State, c: Any, f: Any) -> Any:
        return x.v - c.threshold
