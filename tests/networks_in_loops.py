"""Networks as users of spiking libraries write them: a loop over the steps in ``forward``.

Layers and neurons are modules that are called once in every step; the neurons' state is passed on
by hand or kept by them.  ``built`` makes the same networks from recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import snntorch
import torch
from torch import Tensor, nn

import biograd
from biograd.neurons import AlphaSynapse, Leaky
from biograd.neurons.surrogate import spike
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe

STEPS, INPUTS, UNITS, OUTPUTS, ROWS = 6, 16, 7, 3, 5
SIDE = 4
"""Of the images of the convolutional network."""
DT, TAU, TAU_SYNAPSE, TAU_READOUT, SLOPE = 1.0, 8.0, 4.0, 20.0, 3.0
BETA, ALPHA, KEPT = (math.exp(-DT / tau) for tau in (TAU, TAU_SYNAPSE, TAU_READOUT))


def decay(value: float) -> Tensor:
    """Return a decay as a tensor, which snnTorch does not round to float32."""
    return torch.tensor(value, dtype=torch.float64)


def fire(distance: Tensor) -> Tensor:
    """Return spikes in the type of the potential, unlike snnTorch's surrogates."""
    return spike(distance, slope=SLOPE)


class Loop(nn.Module):
    """Two hidden layers and a leaky readout.

    Args:
        course: return the outputs of every step, ``[B, T, K]``; else those of the last one.
    """

    def __init__(self, course: bool = True) -> None:
        super().__init__()
        self.course = course
        self.first, self.neurons = self.layer(), self.cell()
        self.second, self.others = nn.Linear(self.inner, UNITS), self.cell()
        self.readout = nn.Linear(UNITS, OUTPUTS)

    inner = UNITS

    def layer(self) -> nn.Module:
        """Return the first layer."""
        return nn.Linear(INPUTS, UNITS)

    def cell(self) -> nn.Module:
        """Return the neurons of a layer."""
        return snntorch.Leaky(beta=decay(BETA), spike_grad=fire)

    def begin(self, inputs: Tensor) -> list[Any]:
        """Return the state of each layer's neurons."""
        return [inputs.new_zeros(len(inputs), UNITS) for _ in range(2)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        """Return the spikes of the last hidden layer."""
        spikes, states[0] = self.neurons(self.first(now), states[0])
        spikes, states[1] = self.others(self.second(spikes), states[1])
        return spikes

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout of inputs ``[B, T, ...]``."""
        states, found = self.begin(inputs), []
        outputs = inputs.new_zeros(len(inputs), OUTPUTS)
        for now in inputs.unbind(1):
            spikes = self.step(now, states)
            outputs = KEPT * outputs + (1 - KEPT) * self.readout(spikes)
            found.append(outputs)
        return torch.stack(found, 1) if self.course else outputs


class Convolutional(Loop):
    """A convolution, pooling, neurons; then a dense layer with neurons."""

    inner = 2 * (SIDE // 2) ** 2

    def __init__(self, course: bool = True) -> None:
        super().__init__(course)
        self.pool: nn.Module = nn.MaxPool2d(2)

    def layer(self) -> nn.Module:
        return nn.Conv2d(1, 2, 3, padding=1)

    def begin(self, inputs: Tensor) -> list[Any]:
        half = SIDE // 2
        return [inputs.new_zeros(len(inputs), 2, half, half), inputs.new_zeros(len(inputs), UNITS)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        current = self.pool(self.first(now.unflatten(1, (1, SIDE, SIDE))))
        spikes, states[0] = self.neurons(current, states[0])
        spikes, states[1] = self.others(self.second(spikes.flatten(1)), states[1])
        return spikes


class PooledSpikes(Convolutional):
    """The same with the pooling, a mean, behind the neurons."""

    def __init__(self, course: bool = True) -> None:
        super().__init__(course)
        self.pool = nn.AvgPool2d(2)

    def begin(self, inputs: Tensor) -> list[Any]:
        return [inputs.new_zeros(len(inputs), 2, SIDE, SIDE), inputs.new_zeros(len(inputs), UNITS)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        current = self.first(now.unflatten(1, (1, SIDE, SIDE)))
        spikes, states[0] = self.neurons(current, states[0])
        spikes, states[1] = self.others(self.second(self.pool(spikes).flatten(1)), states[1])
        return spikes


class Recurrent(Loop):
    """snnTorch's own recurrent neurons, whose recurrent layer lies within them."""

    def cell(self) -> nn.Module:
        neurons = snntorch.RLeaky(beta=decay(BETA), spike_grad=fire, linear_features=UNITS)
        neurons.recurrent = nn.Linear(UNITS, UNITS, bias=False)
        return neurons

    def begin(self, inputs: Tensor) -> list[Any]:
        return [[inputs.new_zeros(len(inputs), UNITS)] * 2 for _ in range(2)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes, *state = self.neurons(self.first(now), *states[0])
        states[0] = [spikes, *state]
        spikes, *state = self.others(self.second(spikes), *states[1])
        states[1] = [spikes, *state]
        return spikes


class Filtered(Loop):
    """Neurons of second order behind a synaptic filter."""

    def cell(self) -> nn.Module:
        return snntorch.Synaptic(alpha=decay(ALPHA), beta=decay(BETA), spike_grad=fire)

    def begin(self, inputs: Tensor) -> list[Any]:
        return [[inputs.new_zeros(len(inputs), UNITS)] * 2 for _ in range(2)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes, *states[0] = self.neurons(self.first(now), *states[0])
        spikes, *states[1] = self.others(self.second(spikes), *states[1])
        return spikes


class RisingSynapse(nn.Module):
    """A leaky neuron behind two filters, written out; its state is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.state: list[Tensor] | None = None

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes of a step."""
        rise, filtered, potential, spikes = self.state or [torch.zeros_like(current)] * 4
        rise = ALPHA * rise + current
        filtered = ALPHA * filtered + rise
        potential = BETA * potential + filtered - spikes.detach()
        spikes = fire(potential - 1)
        self.state = [rise, filtered, potential, spikes]
        return spikes


class Alpha(Loop):
    """Neurons that keep their state, put back at the start of ``forward``."""

    def cell(self) -> nn.Module:
        return RisingSynapse()

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes: Tensor = self.others(self.second(self.neurons(self.first(now))))
        return spikes

    def forward(self, inputs: Tensor) -> Tensor:
        self.neurons.state = self.others.state = None  # type: ignore[assignment]
        return super().forward(inputs)


class TwoExponentials(Loop):
    """snnTorch's Alpha, whose membrane is the difference of two filters."""

    def cell(self) -> nn.Module:
        return snntorch.Alpha(alpha=decay(BETA), beta=decay(ALPHA), spike_grad=fire)

    def begin(self, inputs: Tensor) -> list[Any]:
        return [[inputs.new_zeros(len(inputs), UNITS)] * 3 for _ in range(2)]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes, *states[0] = self.neurons(self.first(now), *states[0])
        spikes, *states[1] = self.others(self.second(spikes), *states[1])
        return spikes


class Hidden(Loop):
    """snnTorch's neurons that keep their state, reset at the start of ``forward``."""

    def cell(self) -> nn.Module:
        return snntorch.Leaky(beta=decay(BETA), spike_grad=fire, init_hidden=True)

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes: Tensor = self.others(self.second(self.neurons(self.first(now))))
        return spikes

    def forward(self, inputs: Tensor) -> Tensor:
        self.neurons.reset_mem()
        self.others.reset_mem()
        return super().forward(inputs)


class LongShortTerm(Loop):
    """A spiking LSTM: a cell with weights of its own in place of the second layer."""

    def __init__(self, course: bool = True) -> None:
        super().__init__(course)
        self.others = snntorch.SLSTM(UNITS, UNITS, spike_grad=fire, threshold=0.1)
        del self.second

    def begin(self, inputs: Tensor) -> list[Any]:
        return [inputs.new_zeros(len(inputs), UNITS), [inputs.new_zeros(len(inputs), UNITS)] * 2]

    def step(self, now: Tensor, states: list[Any]) -> Tensor:
        spikes, states[0] = self.neurons(self.first(now), states[0])
        spikes, *states[1] = self.others(spikes, *states[1])
        return spikes


LOOPS: dict[str, Callable[[], Loop]] = {
    "dense": Loop,
    "hidden state": Hidden,
    "convolution": Convolutional,
    "pooled spikes": PooledSpikes,
    "recurrent": Recurrent,
    "filtered": Filtered,
    "alpha": Alpha,
    "two exponentials": TwoExponentials,
    "long short-term": LongShortTerm,
}


def drawn(name: str) -> Loop:
    """Return a network whose units are active, its weights always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LOOPS[name]().double()
    grid = isinstance(network, Convolutional)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 6.0 if grid and parameter.dim() > 1 else 2.0
    return network


def data(course: bool = True) -> tuple[Tensor, Tensor]:
    """Return inputs ``[B, T, N]`` and classes, ``[B, T]`` or ``[B]``."""
    stream = generator(0, "loops")
    inputs = torch.rand(ROWS, STEPS, INPUTS, generator=stream, dtype=torch.float64)
    shape = (ROWS, STEPS) if course else (ROWS,)
    return inputs, torch.randint(OUTPUTS, shape, generator=stream)


def built(name: str) -> nn.Module:
    """Return the network of a recipe with the weights of a loop.

    The recipe's neurons scale their current, ``(1 - beta) R I``, the loops' do not.
    """
    gain, known = 1 - BETA, {"time_constant_ms": TAU, "slope": SLOPE}
    neuron = Leaky(**known, resistance=1 / gain)
    if name in ("filtered", "alpha"):
        known["synaptic_time_constant_ms"] = TAU_SYNAPSE
        gain *= 1 - ALPHA
        neuron = Leaky(**known, resistance=1 / gain)
    if name == "alpha":
        gain *= 1 - ALPHA
        neuron = AlphaSynapse(**known, resistance=1 / gain, rise_time_constant_ms=TAU_SYNAPSE)
    convolution: dict[str, Any] = {}
    if name == "pooled spikes":
        convolution = {"channels": (2,), "stride": 1, "pooling": 2, "hidden": (UNITS,)}
    shape = {"kind": "spiking", "hidden": (UNITS, UNITS), "dtype": "float64", **convolution}
    recipe = ModelRecipe(
        network=NetworkRecipe(
            **shape, recurrent=name == "recurrent", readout_time_constant_ms=TAU_READOUT
        ),
        neuron=neuron,
        encoding=EncodingRecipe(kind="given", dt_ms=DT, duration_ms=STEPS * DT),
    )
    inputs = (1, SIDE, SIDE) if convolution else (INPUTS,)
    return biograd.build(recipe, inputs, OUTPUTS, timed=True)
