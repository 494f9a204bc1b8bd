"""Kinds of networks that users bring along, as tiny modules ``[B, 1, 4, 4]`` to ``[B, 3]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

INPUTS, UNITS, OUTPUTS, STEPS = 16, 5, 3, 4


def chain(first: nn.Module | None = None, second: nn.Module | None = None) -> nn.Sequential:
    """Return an ordinary network, whose layers may be given."""
    return nn.Sequential(
        nn.Flatten(),
        first or nn.Linear(INPUTS, UNITS),
        nn.Tanh(),
        second or nn.Linear(UNITS, UNITS),
        nn.Tanh(),
        nn.Linear(UNITS, OUTPUTS),
    )


class LongShortTermMemory(nn.Module):
    """torch's LSTM over the rows of the image, and a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(4, UNITS, batch_first=True)
        self.readout = nn.Linear(UNITS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout of the last state."""
        found: Tensor = self.readout(self.memory(inputs.flatten(1, 2))[0][:, -1])
        return found


class OwnWeights(nn.Module):
    """A weight of its own between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, OUTPUTS)
        self.own = nn.Parameter(torch.randn(UNITS, UNITS) / 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout of what the own weight makes of the first layer."""
        activity = torch.tanh(self.first(inputs.flatten(1)))
        found: Tensor = self.readout(torch.tanh(activity @ self.own))
        return found


class Functional(nn.Module):
    """A layer that is not called as a module, but by ``functional.linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, UNITS)
        self.readout = nn.Linear(UNITS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout of the second layer."""
        current = functional.linear(inputs.flatten(1), self.first.weight, self.first.bias)
        found: Tensor = self.readout(torch.tanh(self.second(torch.tanh(current))))
        return found


class Loop(nn.Module):
    """snnTorch's usual form: layers and neurons by turns, called in a loop over the steps."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        self.first, self.second = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, UNITS)
        self.cells = nn.ModuleList(snntorch.Leaky(beta=0.9, threshold=0.2) for _ in range(2))
        self.readout = nn.Linear(UNITS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout, summed over the steps."""
        states: list[Tensor] = [inputs.new_zeros(len(inputs), UNITS) for _ in self.cells]
        total = inputs.new_zeros(len(inputs), OUTPUTS)
        for _ in range(STEPS):
            spikes, states[0] = self.cells[0](self.first(inputs.flatten(1)), states[0])
            spikes, states[1] = self.cells[1](self.second(spikes), states[1])
            total = total + self.readout(spikes)
        return total


class Stateful(nn.Module):
    """A network that keeps a state from one call to the next."""

    stateful = True  # biograd's own modules are not looked through for states

    def __init__(self) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, OUTPUTS)
        self.state: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the readout of the new state."""
        state = torch.tanh(self.first(inputs.flatten(1)))
        if self.state is not None:
            state = state + self.state.mean(0)
        self.state = state.detach()
        found: Tensor = self.readout(state)
        return found


class Mixed(nn.Module):
    """An ordinary network that computes in bfloat16 by autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = self.layers(inputs)
        return found.float()


def tied() -> nn.Module:
    """Return a network whose hidden layers share a weight, square."""
    network = chain(nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS))
    network[3].weight = network[1].weight
    network[5] = nn.Linear(INPUTS, OUTPUTS)
    return network


def frozen() -> nn.Module:
    """Return a network whose first layer does not learn."""
    network = chain()
    network[1].requires_grad_(False)
    return network


def compiled() -> nn.Module:
    """Return a compiled network."""
    network = chain()
    network.compile(backend="eager")
    return network


USERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": LongShortTermMemory,
    "own weights": OwnWeights,
    "functional": Functional,
    "tied": tied,
    "frozen": frozen,
    "loop": Loop,
    "stateful": Stateful,
    "weight norm": lambda: chain(parametrizations.weight_norm(nn.Linear(INPUTS, UNITS))),
    "compiled": compiled,
    "autocast": Mixed,
}
"""Kinds of networks by name."""


def make(name: str) -> nn.Module:
    """Return a network, its weights always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return USERS[name]()
