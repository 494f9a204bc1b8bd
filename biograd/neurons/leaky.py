"""Leaky integrate-and-fire neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from biograd.checking import NotNegative
from biograd.errors import CapabilityError
from biograd.neurons.neuron import PerNeuron, PerNeuronOrZero, SnnTorchStep, Spiking, State
from biograd.neurons.surrogate import Derivative, spike


@dataclasses.dataclass(frozen=True)
class Leaky(Spiking):
    """``tau dv/dt = R g - v``, a spike where ``v > threshold``.

    One step of length dt, with ``alpha = exp(-dt/tau_syn)``, ``beta = exp(-dt/tau)``::

        g[t] = alpha g[t-1] + (1 - alpha) I[t]                     (g = I without a synaptic filter)
        v[t] = beta v[t-1] + (1 - beta) R g[t] - threshold s[t-1]    (reset "subtract")
        v[t] = beta v[t-1] (1 - s[t-1]) + (1 - beta) R g[t]          (reset "zero")
        s[t] = 1 if v[t] > threshold else 0

    This is the exact solution for a current that is constant in a step.  For the refractory time
    after a spike the membrane receives nothing and cannot spike; it decays as ever.

    Attributes:
        time_constant_ms: tau, of the membrane.
        synaptic_time_constant_ms: tau_syn; zero: the current reaches the membrane unfiltered.
        resistance: R.
        threshold: of the potential, whose rest is zero.
        reset: "subtract" (the threshold) or "zero".
        refractory_ms: rounded to steps; zero: never refractory.
    """

    time_constant_ms: PerNeuron = 10.0
    synaptic_time_constant_ms: PerNeuronOrZero = 0.0
    resistance: PerNeuron = 1.0
    threshold: PerNeuron = 1.0
    reset: Literal["zero", "subtract"] = "subtract"
    refractory_ms: NotNegative = 0.0

    name: ClassVar[str] = "leaky"

    @property
    def variables(self) -> tuple[str, ...]:
        """Synaptic current, membrane potential, and steps that are left of the refractory time."""
        return ("g", "v", "wait") if self.refractory_ms else ("g", "v")

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return decays per step, gain and threshold."""
        beta = f.exp(-dt / p.time_constant_ms)
        alpha = 0.0
        if self.synaptic_time_constant_ms:
            alpha = f.exp(-dt / p.synaptic_time_constant_ms)
        gain = (1 - beta) * p.resistance
        found = {"alpha": alpha, "beta": beta, "gain": gain, "threshold": p.threshold}
        return found | ({"silent": _steps(p.refractory_ms, dt)} if self.refractory_ms else {})

    def filtered(self, x: State, current: Any, c: Any) -> Any:
        """Return the synaptic current."""
        return c.alpha * x.g + (1 - c.alpha) * current

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step."""
        x = x._replace(g=self.filtered(x, into.I, c))
        g = x.g
        if self.refractory_ms:
            wait = c.silent * held + (1 - held) * f.relu(x.wait - 1)
            x = x._replace(wait=wait)
            g = f.where(wait, 0 * g, g)
        if self.reset == "zero":
            return x._replace(v=c.beta * x.v * (1 - held) + c.gain * g)
        return x._replace(v=c.beta * x.v + c.gain * g - c.threshold * held)

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the distance to the threshold."""
        return self.unless_refractory(x, x.v - c.threshold, f)

    def unless_refractory(self, x: State, distance: Any, f: Any) -> Any:
        """Return the distance to the threshold; far below it while the neuron is refractory."""
        return f.where(x.wait, 0 * distance - 1e6, distance) if self.refractory_ms else distance

    def snntorch(self, c: Any, derivative: Derivative) -> SnnTorchStep:
        """Return ``Leaky`` or ``Synaptic`` of snnTorch."""
        return self._leaky(c, lambda distance: spike(distance, derivative=derivative))

    def nir(self, p: Any) -> Mapping[str, Any]:
        """Return what LIF and CubaLIF say."""
        if self.refractory_ms:
            raise CapabilityError("neuron.refractory_ms: NIR's neurons are never refractory")
        filtered = bool(self.synaptic_time_constant_ms)
        return {
            "time_constant_ms": p.time_constant_ms,
            "synaptic_time_constant_ms": p.synaptic_time_constant_ms if filtered else None,
            "resistance": p.resistance,
            "threshold": p.threshold,
            **({"reset": 0.0} if self.reset == "zero" else {"taken": p.threshold}),
        }

    def _leaky(self, c: Any, fire: Any) -> SnnTorchStep:
        """Return the step of snnTorch's own cell.

        snnTorch adds its input as it comes; the exact step scales a current by ``(1 - beta) R``.
        """
        import snntorch

        filtered = bool(self.synaptic_time_constant_ms)
        if self.refractory_ms:
            raise CapabilityError(
                f"neuron.refractory_ms: snnTorch's {self.noun} is never refractory: take "
                "network.substrate = 'torch' or 'brian2'"
            )
        if self.reset == "zero" and filtered:
            raise CapabilityError(
                "neuron.reset = 'zero' with neuron.synaptic_time_constant_ms: snnTorch's Synaptic "
                "also resets the synaptic current; use reset = 'subtract' or network.substrate = "
                "'torch'"
            )
        names = ("beta", "threshold", *(("alpha",) if filtered else ()))
        one = torch.ones((), dtype=torch.float64)  # a number would become float32
        make = snntorch.Synaptic if filtered else snntorch.Leaky
        cell: Any = make(**dict.fromkeys(names, one), reset_mechanism=self.reset, spike_grad=fire)
        instances = snntorch.SpikingNeuron.instances  # a list that would keep it alive
        instances[:] = [other for other in instances if other is not cell]

        def step(x: State, spikes: Tensor, current: Tensor, c: Any) -> tuple[State, Tensor]:
            for name in names:
                cell._buffers[name] = _buffer(getattr(c, name), current)
            cell.mem_reset = lambda _: spikes.detach()  # of the step before, as they were
            drive = current * (c.gain * (1 - c.alpha))
            found, *new = cell(drive, *((x.g, x.v) if filtered else (x.v,)))
            cell.reset = None  # it would hold the graph of the trial
            for name in ("mem", "syn", "spk"):
                if name in cell._buffers:
                    cell._buffers[name] = torch.zeros(0)
            return x._replace(
                **dict(zip(("g", "v") if filtered else ("v",), new, strict=True))
            ), found

        return step


def _steps(duration: Any, dt: Any) -> Any:
    """Return a duration in whole steps, one at least."""
    return max(1.0, float(round(duration / dt))) if isinstance(dt, float | int) else duration / dt


def _buffer(value: Any, like: Tensor) -> Tensor:
    """Return a constant as snnTorch keeps it: a number in float64, which changes no dtype."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.tensor(value, dtype=torch.float64, device=like.device)
