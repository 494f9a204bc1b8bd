"""Neurons with an adaptation current that is coupled to their potential (adLIF)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from biograd.neurons.neuron import PerNeuron, PerNeuronOrZero, Spiking, State


@dataclasses.dataclass(frozen=True)
class AdaptiveCurrent(Spiking):
    """``tau du/dt = R I - w - u``, ``tau_w dw/dt = -w + a u + b s``, a spike where u > threshold.

    With ``alpha = exp(-dt/tau)`` and ``beta = exp(-dt/tau_w)``, ``u'`` the potential after its
    reset::

        w[t-1] = beta w[t-2] + (1 - beta) (a u'[t-1] + b s[t-1])
        u[t] = alpha u'[t-1] + (1 - alpha) (R I[t] - w[t-1])

    The adaptation sees the new potential (a semi-implicit step): where the solution oscillates it
    decays by ``sqrt(alpha beta)`` a step, the rate of the continuous equations, whatever the
    coupling; the explicit step diverges (Baronig et al. 2024, arXiv 2408.07517).  Credit passes
    through the spike in ``w``, not through the reset of ``u``.

    Attributes:
        time_constant_ms: tau.
        adaptation_time_constant_ms: tau_w.
        coupling: a, of the adaptation to the potential.
        jump: b, of the adaptation with every spike.
    """

    time_constant_ms: PerNeuron = 10.0
    adaptation_time_constant_ms: PerNeuron = 100.0
    resistance: PerNeuron = 1.0
    threshold: PerNeuron = 1.0
    coupling: PerNeuronOrZero = 0.5
    jump: PerNeuronOrZero = 0.5
    reset: Literal["zero", "subtract"] = "zero"

    name: ClassVar[str] = "adaptive_current"

    @property
    def variables(self) -> tuple[str, ...]:
        """Membrane potential before its reset, adaptation current."""
        return ("u", "w")

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return decays per step, gain, coupling, jump and threshold."""
        alpha = f.exp(-dt / p.time_constant_ms)
        beta = f.exp(-dt / p.adaptation_time_constant_ms)
        return {
            "alpha": alpha,
            "beta": beta,
            "resistance": p.resistance,
            "coupling": p.coupling,
            "jump": p.jump,
            "threshold": p.threshold,
        }

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        rest = x.u * (1 - held) if self.reset == "zero" else x.u - c.threshold * held
        w = c.beta * x.w + (1 - c.beta) * (c.coupling * rest + c.jump * fired)
        return x._replace(u=c.alpha * rest + (1 - c.alpha) * (c.resistance * into.I - w), w=w)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the distance to the threshold."""
        return x.u - c.threshold
