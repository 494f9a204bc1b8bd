"""Leaky integrate-and-fire neurons whose synapses rise and decay."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from biograd.neurons.leaky import Leaky
from biograd.neurons.neuron import Neuron, PerNeuron, State


@dataclasses.dataclass(frozen=True)
class AlphaSynapse(Leaky):
    """A leaky neuron behind two filters in a row: an alpha function if both have one time constant.

    With ``rho = exp(-dt/tau_rise)`` and the equations of ``Leaky``::

        h[t] = rho h[t-1] + (1 - rho) I[t]
        g[t] = alpha g[t-1] + (1 - alpha) h[t]

    Attributes:
        synaptic_time_constant_ms: of the decay.
        rise_time_constant_ms: tau_rise.
    """

    synaptic_time_constant_ms: PerNeuron = 5.0
    rise_time_constant_ms: PerNeuron = 5.0

    name: ClassVar[str] = "alpha"

    @property
    def variables(self) -> tuple[str, ...]:
        """Rising current, and the variables of ``Leaky``."""
        return ("h", *super().variables)

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return those of ``Leaky`` and the decay of the first filter."""
        return super().constants(p, dt, f) | {"rise": f.exp(-dt / p.rise_time_constant_ms)}

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        x = x._replace(h=c.rise * x.h + (1 - c.rise) * into.I)
        return super().advance(x, fired, held, into, c, f)

    def filtered(self, x: State, current: Any, c: Any) -> Any:
        """Return the synaptic current."""
        return c.alpha * x.g + (1 - c.alpha) * x.h

    snntorch = Neuron.snntorch  # what Leaky builds would lose the rise; snnTorch's Alpha is another
