"""Spiking networks on torch and snnTorch: the same layers, with interchangeable populations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from biograd.contracts import Site
from biograd.encoding import Encoding
from biograd.networks.network import Network
from biograd.networks.spikes import Membrane, rest, scan, spike, step
from biograd.recipes import NetworkRecipe, NeuronRecipe


class Population(nn.Module):
    """Leaky integrate-and-fire neurons, fused over time (equation in ``networks.spikes``)."""

    def __init__(self, membrane: Membrane, steps: int) -> None:
        super().__init__()
        self.membrane, self.steps = membrane, steps

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``.

        ``recurrent`` maps the spikes of the step before to an additional current.  The state
        starts at rest in every call.
        """
        if recurrent is None:
            return scan(self.membrane, current, self.steps)
        current = current.expand(-1, self.steps, -1)
        state = rest(current[:, 0])
        spikes, train = state[2], []
        for index in range(self.steps):
            state, spikes = step(self.membrane, state, current[:, index] + recurrent(spikes))
            train.append(spikes)
        return torch.stack(train, 1)

    def extra_repr(self) -> str:
        """Return the constants for ``print``."""
        return f"{self.membrane}, steps={self.steps}"


class SnnTorchPopulation(nn.Module):
    """The same neurons as snnTorch simulates them: ``Leaky``, ``Synaptic`` or ``RLeaky``.

    The states are arguments of every call, so that no reset can be forgotten, and the neuron is
    taken out of snnTorch's global list of instances, which would otherwise keep it alive.

    Why ``RLeaky`` serves only reset "subtract": its reset to zero also erases the input that
    arrives in the spiking step, and ``RSynaptic`` shares that; there ``Leaky`` or ``Synaptic``
    receives the recurrent current as input instead.
    """

    def __init__(self, membrane: Membrane, steps: int, recurrent_units: int | None) -> None:
        super().__init__()
        import snntorch

        self.membrane, self.steps = membrane, steps
        common: dict[str, Any] = {
            "beta": torch.tensor(membrane.beta, dtype=torch.float64),
            "threshold": torch.tensor(membrane.threshold, dtype=torch.float64),
            "spike_grad": self._spike,
            "reset_mechanism": membrane.reset,
        }
        self.inner = bool(recurrent_units) and membrane.reset == "subtract" and not membrane.alpha
        if self.inner:
            self.neuron = snntorch.RLeaky(linear_features=recurrent_units, **common)
            del self.neuron.recurrent  # the block's own layer takes its place in each call
        elif membrane.alpha:
            alpha = torch.tensor(membrane.alpha, dtype=torch.float64)
            self.neuron = snntorch.Synaptic(alpha=alpha, **common)
        else:
            self.neuron = snntorch.Leaky(**common)
        instances = snntorch.SpikingNeuron.instances
        instances[:] = [instance for instance in instances if instance is not self.neuron]

    def _spike(self, distance: Tensor) -> Tensor:
        return spike(distance, self.membrane.surrogate, self.membrane.slope)

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``."""
        current = current.expand(-1, self.steps, -1)
        # snnTorch adds its input as it comes; the exact step scales a current by (1 - beta) R
        scale = self.membrane.gain * (1 - self.membrane.alpha)
        synaptic, potential, spikes = rest(current[:, 0])
        if self.inner:
            assert recurrent is not None
            self.neuron.__dict__["recurrent"] = lambda spikes: scale * recurrent(spikes)
        train = []
        for index in range(self.steps):
            drive = current[:, index]
            if recurrent is not None and not self.inner:
                drive = drive + recurrent(spikes)
            if self.inner:
                spikes, potential = self.neuron(drive * scale, spikes, potential)
            elif self.membrane.alpha:
                spikes, synaptic, potential = self.neuron(drive * scale, synaptic, potential)
            else:
                spikes, potential = self.neuron(drive * scale, potential)
            train.append(spikes)
        self._forget()
        return torch.stack(train, 1)

    def _forget(self) -> None:
        """Drop what the neuron kept of the last step: it would hold the whole graph alive."""
        self.neuron.__dict__.pop("recurrent", None)
        self.neuron.reset = None
        for name in ("mem", "syn", "spk"):
            if name in self.neuron._buffers:
                self.neuron._buffers[name] = torch.zeros(0, device=self.neuron.beta.device)


class SpikingNetwork(Network):
    """Spiking layers and a linear readout of their filtered spikes.

    Each block is ``s = population(W x + V s[t-1] + b)``; its site is the current in brackets.  The
    readout is a leaky integrator without a threshold: the mean over the trial of its membrane
    potential is linear in the spikes, ``W sum_t c[t] s[t] + b``, and is computed so.
    """

    spiking = True

    def __init__(
        self, recipe: NetworkRecipe, neuron: NeuronRecipe, encoding: Encoding, classes: int
    ) -> None:
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps
        membrane = Membrane.of(neuron, encoding.dt_ms)
        self.blocks = nn.ModuleList()
        units, sites = encoding.units, []
        for index, width in enumerate(recipe.hidden):
            block = nn.ModuleDict({"synapse": nn.Linear(units, width)})
            name, recurrent = f"blocks.{index}", recipe.recurrent
            if recurrent:
                block["recurrent"] = nn.Linear(width, width, bias=False)
            block["activity"] = self.population(recipe, membrane, width)
            self.blocks.append(block)
            layers = (f"{name}.synapse", *([f"{name}.recurrent"] if recurrent else []))
            sites.append(Site(f"{name}.synapse", layers, (True, False)[: len(layers)]))
            units = width
        self.readout = nn.Linear(units, classes)
        self.sites = (*sites, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))
        weights = readout_weights(neuron, encoding)
        self.register_buffer("readout_weights", weights, persistent=False)

    def population(self, recipe: NetworkRecipe, membrane: Membrane, width: int) -> nn.Module:
        """Return the population of a block, by substrate."""
        if recipe.substrate == "snntorch":
            return SnnTorchPopulation(membrane, self.steps, width if recipe.recurrent else None)
        return Population(membrane, self.steps)

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, classes]`` for ``[rows, steps or 1, units]``."""
        activity = encoded
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            current = block["synapse"](activity)
            recurrent = block["recurrent"] if "recurrent" in block else None
            activity = block["activity"](current, recurrent)
        return self.readout(self.filtered(activity))

    def filtered(self, spikes: Tensor) -> Tensor:
        """Return the input of the readout ``[rows, units]`` for ``[rows, steps, units]``."""
        weights = self.get_buffer("readout_weights")
        return torch.einsum("t,rtu->ru", weights.to(spikes.dtype), spikes)


def readout_weights(neuron: NeuronRecipe, encoding: Encoding) -> Tensor:
    """Return the weight ``c[t]`` of a spike at step ``t`` in the readout, ``[steps]``.

    "rate": the spike count, ``c = 1``.  "membrane": the mean over the trial of a leaky integrator
    with decay ``k = exp(-dt/tau)`` is proportional to ``sum_t s[t] (1 - k^(steps - t))``; scaled
    to a mean weight of 1, so that both readouts count spikes.
    """
    steps = encoding.steps
    if neuron.readout == "rate":
        return torch.ones(steps, dtype=torch.float64)
    decay = math.exp(-encoding.dt_ms / neuron.readout_time_constant_ms)
    left = torch.arange(steps, 0, -1, dtype=torch.float64)
    weights = 1 - decay**left
    return weights / weights.mean()
