"""Neurons whose threshold rises with every spike (ALIF)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from biograd.neurons.leaky import Leaky
from biograd.neurons.neuron import Functions, PerNeuron, SnnTorchStep, State
from biograd.neurons.surrogate import Derivative, spike


@dataclasses.dataclass(frozen=True)
class AdaptiveThreshold(Leaky):
    """A leaky neuron whose threshold rises by ``jump`` with every spike and decays back.

    With ``rho = exp(-dt/tau_a)`` and the equations of ``Leaky``::

        a[t] = rho a[t-1] + s[t-1]                (in spikes)
        s[t] = 1 if v[t] > threshold + jump a[t] else 0

    Credit passes through the spike in ``a``, not through the reset of ``v`` (Bellec et al. 2020).

    Attributes:
        adaptation_time_constant_ms: tau_a.
        jump: of the threshold, with every spike.
    """

    adaptation_time_constant_ms: PerNeuron = 100.0
    jump: PerNeuron = 0.2

    name: ClassVar[str] = "adaptive_threshold"

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables of ``Leaky`` and the adaptation."""
        return (*super().variables, "a")

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return those of ``Leaky``, the decay of the adaptation and its jump."""
        decay = f.exp(-dt / p.adaptation_time_constant_ms)
        return super().constants(p, dt, f) | {"rho": decay, "jump": p.jump}

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        return super().advance(x, fired, held, into, c, f)._replace(a=c.rho * x.a + fired)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the distance to the threshold."""
        return self.unless_refractory(x, x.v - (c.threshold + c.jump * x.a), f)

    def snntorch(self, c: Any, derivative: Derivative) -> SnnTorchStep:
        """Return snnTorch's leaky cell, whose spikes are those of the raised threshold."""
        leaky = self._leaky(c, lambda distance: distance * 0)

        def step(x: State, spikes: Tensor, current: Tensor, c: Any) -> tuple[State, Tensor]:
            new, _ = leaky(x, spikes, current, c)
            new = new._replace(a=c.rho * x.a + spikes)
            return new, spike(self.passed(new, c, Functions), derivative=derivative)

        return step
