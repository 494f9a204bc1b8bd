"""Leaky integrators without a threshold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from biograd.neurons.neuron import Neuron, PerNeuron, PerNeuronOrZero, SnnTorchStep, State
from biograd.neurons.surrogate import Derivative


@dataclasses.dataclass(frozen=True)
class LeakyIntegrator(Neuron):
    """``tau dv/dt = R g - v``; the potential itself is passed on (equations of ``Leaky``).

    Attributes:
        time_constant_ms: tau, of the membrane.
        synaptic_time_constant_ms: of the input; zero: it is not filtered.
        resistance: R.
    """

    time_constant_ms: PerNeuron = 10.0
    synaptic_time_constant_ms: PerNeuronOrZero = 0.0
    resistance: PerNeuron = 1.0

    name: ClassVar[str] = "integrator"
    spiking: ClassVar[bool] = False

    @property
    def variables(self) -> tuple[str, ...]:
        """Synaptic current and membrane potential."""
        return ("g", "v")

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return decays per step and the gain."""
        beta, alpha = f.exp(-dt / p.time_constant_ms), 0.0
        if self.synaptic_time_constant_ms:
            alpha = f.exp(-dt / p.synaptic_time_constant_ms)
        return {"alpha": alpha, "beta": beta, "gain": (1 - beta) * p.resistance}

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        g = c.alpha * x.g + (1 - c.alpha) * into.I
        return x._replace(g=g, v=c.beta * x.v + c.gain * g)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the potential."""
        return x.v

    def nir(self, p: Any) -> Mapping[str, Any]:
        """Return what LI and CubaLI say."""
        filtered = bool(self.synaptic_time_constant_ms)
        return {
            "time_constant_ms": p.time_constant_ms,
            "synaptic_time_constant_ms": p.synaptic_time_constant_ms if filtered else None,
            "resistance": p.resistance,
        }

    def snntorch(self, c: Any, derivative: Derivative) -> SnnTorchStep:
        """Return the membrane of snnTorch's ``Leaky`` without its reset, a filter before it."""
        import snntorch

        cell: Any = snntorch.Leaky(beta=0.5, reset_mechanism="none")
        instances = snntorch.SpikingNeuron.instances
        instances[:] = [other for other in instances if other is not cell]

        def step(x: State, spikes: Tensor, current: Tensor, c: Any) -> tuple[State, Tensor]:
            g = c.alpha * x.g + (1 - c.alpha) * current
            beta = c.beta if isinstance(c.beta, Tensor) else torch.tensor(c.beta, dtype=g.dtype)
            cell._buffers["beta"] = beta.to(g)
            _, v = cell(c.gain * g, x.v)
            cell._buffers["mem"] = torch.zeros(0)
            return x._replace(g=g, v=v), v

        return step
