"""Rate units."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from biograd.neurons.neuron import Neuron, PerNeuronOrZero, State


@dataclasses.dataclass(frozen=True)
class Rate(Neuron):
    """``h[t] = (1 - k) f(I[t]) + k h[t-1]`` with ``k = exp(-dt/tau)``; k = 0 without a tau.

    Attributes:
        activation: f.
        time_constant_ms: tau; zero: the rate follows its current at once.
    """

    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"
    time_constant_ms: PerNeuronOrZero = 0.0

    name: ClassVar[str] = "rate"
    spiking: ClassVar[bool] = False

    @property
    def variables(self) -> tuple[str, ...]:
        """The rate."""
        return ("h",)

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return what remains of the rate in a step."""
        return {"keep": f.exp(-dt / p.time_constant_ms)} if self.time_constant_ms else {}

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        value = getattr(f, self.activation)(into.I)
        return x._replace(h=c.keep * x.h + (1 - c.keep) * value if self.time_constant_ms else value)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the rate."""
        return x.h
