"""Spiking networks on torch and snnTorch: the same layers, with interchangeable populations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biograd.contracts import Site, Transport
from biograd.encoding import Encoding
from biograd.networks.network import Network
from biograd.credit_paths import hand_over, join, needed, starts, ways
from biograd.networks.readouts import Readout
from biograd.networks.spikes import Membrane, rest, scan, spike, step
from biograd.recipes import NetworkRecipe, NeuronRecipe, PopulationRecipe

State = tuple[Tensor, ...]
"""A population's variables, the spikes of the step before last; each ``[rows, units]``.  Leaky
integrate-and-fire: synaptic current, membrane potential, spikes."""


class SteppedPopulation(nn.Module):
    """A spiking population that is simulated step by step.

    Attributes:
        steps: number of time steps of a trial.
        variables: number of variables of the state, spikes included.
        transport: how credit passes back; a substrate sets it for the time of a pass.
        handed: states from window to window that a substrate asks for.
    """

    variables: int
    transport = Transport()
    handed: list[tuple[Tensor, Tensor]]

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` for a current ``[rows, steps or 1, units]``.

        ``recurrent`` maps the spikes of the step before to an additional current.  The state
        starts at rest in every call.

        Raises:
            CapabilityError: credit shall take two ways (``Transport.traces``), but the current
                does not come straight from its layers.
        """
        drives = ways(current, self.transport)
        drives = [(drive.expand(-1, self.steps, -1), window) for drive, window in drives]
        if recurrent is None:
            drives = needed(drives)
        states = [self.begin(current)] * len(drives)
        spikes, train = states[0][-1], []
        for index in range(self.steps):
            found = []
            if self.transport.slots and starts(index, self.transport.window):
                states[0] = hand_over(states[0], self.handed)
                spikes = states[0][-1]
            fed = self._fed(recurrent, spikes, index)
            for place, ((drive, window), own) in enumerate(zip(drives, fed, strict=False)):
                state = _given(states[place]) if self._cuts(index, window) else states[place]
                states[place], fired = self.advance(state, drive[:, index], own, not place)
                found.append(fired)
            spikes = join(found)
            train.append(spikes)
        return torch.stack(train, 1)

    def _fed(self, recurrent: nn.Module | None, spikes: Tensor, index: int) -> list[Tensor | None]:
        """Return what the population feeds to itself in this step, on every way."""
        if recurrent is None:
            return [None, None]
        past = spikes.detach() if self._cuts(index, self.transport.window) else spikes
        return [current for current, _ in ways(recurrent(past), self.transport)]

    def _cuts(self, step: int, window: int | None) -> bool:
        """Return whether no credit passes back from this step, not even to a leaf."""
        return starts(step, window) and not self.transport.slots

    def begin(self, current: Tensor) -> State:
        """Return the state in which a trial begins.

        Args:
            current: ``[rows, steps or 1, units]``; of it, shape and dtype.
        """
        raise NotImplementedError

    def advance(
        self, state: State, current: Tensor, fed: Tensor | None, first: bool
    ) -> tuple[State, Tensor]:
        """Return the state after one step, and its spikes.

        Args:
            state: of the step before.
            current: from the layer before, ``[rows, units]``.
            fed: from the population's own spikes; None: it is not recurrent.
            first: whether this is the way that carries the value, not a second one of this step.
        """
        raise NotImplementedError


def _given(state: State) -> State:
    """Return the state as one through which no credit passes."""
    return tuple(values.detach() for values in state)


class LeakyPopulation(SteppedPopulation):
    """Leaky integrate-and-fire neurons (equation in ``networks.spikes``).

    Attributes:
        membrane: constants of the neurons.
    """

    variables = 3

    def __init__(self, membrane: Membrane, steps: int) -> None:
        super().__init__(steps)
        self.membrane = membrane

    def begin(self, current: Tensor) -> State:
        """Return the state of neurons at rest."""
        return rest(current[:, 0])

    def extra_repr(self) -> str:
        """Return the constants for ``print``."""
        return f"{self.membrane}, steps={self.steps}"


class Population(LeakyPopulation):
    """Leaky integrate-and-fire neurons, fused over time (equation in ``networks.spikes``)."""

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` (see ``SteppedPopulation``)."""
        if recurrent is not None or self.transport.slots:
            return super().forward(current, recurrent)
        return join(
            [
                scan(self.membrane, drive, self.steps, window, self.transport.derivative)
                for drive, window in needed(ways(current, self.transport))
            ]
        )

    def advance(
        self, state: State, current: Tensor, fed: Tensor | None, first: bool
    ) -> tuple[State, Tensor]:
        """Return the state after one step, and its spikes."""
        total = current if fed is None else current + fed
        synaptic, potential, spikes = state
        return step(self.membrane, (synaptic, potential, spikes), total, self.transport.derivative)


class SnnTorchPopulation(LeakyPopulation):
    """The same neurons as snnTorch simulates them: ``Leaky``, ``Synaptic`` or ``RLeaky``.

    The states are arguments of every call, so that no reset can be forgotten, and the neuron is
    taken out of snnTorch's global list of instances, which would otherwise keep it alive.

    Why ``RLeaky`` serves only reset "subtract": its reset to zero also erases the input that
    arrives in the spiking step, and ``RSynaptic`` shares that; there ``Leaky`` or ``Synaptic``
    receives the recurrent current as input instead.
    """

    def __init__(self, membrane: Membrane, steps: int, recurrent_units: int | None) -> None:
        super().__init__(membrane, steps)
        import snntorch

        common: dict[str, Any] = {
            "beta": torch.tensor(membrane.beta, dtype=torch.float64),
            "threshold": torch.tensor(membrane.threshold, dtype=torch.float64),
            "spike_grad": self._spike,
            "reset_mechanism": membrane.reset,
        }
        self.inner = bool(recurrent_units) and membrane.reset == "subtract" and not membrane.alpha
        self.neuron: Any
        if self.inner:
            self.neuron = snntorch.RLeaky(linear_features=recurrent_units, **common)
            del self.neuron.recurrent  # the block's own layer takes its place in each call
        elif membrane.alpha:
            alpha = torch.tensor(membrane.alpha, dtype=torch.float64)
            self.neuron = snntorch.Synaptic(alpha=alpha, **common)
        else:
            self.neuron = snntorch.Leaky(**common)
        self.neuron.mem_reset = self._reset
        instances = snntorch.SpikingNeuron.instances
        instances[:] = [instance for instance in instances if instance is not self.neuron]

    def _spike(self, distance: Tensor) -> Tensor:
        derivative = self.transport.derivative or self.membrane.derivative
        return spike(distance, derivative=derivative)

    def _reset(self, potential: Tensor) -> Tensor:
        """Return the spikes of the step before; held constant, they need no derivative."""
        return spike(potential.detach() - self.neuron.threshold)

    def forward(self, current: Tensor, recurrent: nn.Module | None = None) -> Tensor:
        """Return spikes ``[rows, steps, units]`` (see ``SteppedPopulation``)."""
        try:
            return super().forward(current, recurrent)
        finally:
            self._forget()

    def advance(
        self, state: State, current: Tensor, fed: Tensor | None, first: bool
    ) -> tuple[State, Tensor]:
        """Return the state after one step, and its spikes."""
        synaptic, potential, spikes = state
        # snnTorch adds its input as it comes; the exact step scales a current by (1 - beta) R
        scale = self.membrane.gain * (1 - self.membrane.alpha)
        if self.inner:
            assert fed is not None
            self.neuron.__dict__["recurrent"] = lambda _: scale * fed
            spikes, potential = self.neuron(current * scale, spikes, potential)
            return (synaptic, potential, spikes), spikes
        drive = (current if fed is None else current + fed) * scale
        if self.membrane.alpha:
            spikes, synaptic, potential = self.neuron(drive, synaptic, potential)
        else:
            spikes, potential = self.neuron(drive, potential)
        return (synaptic, potential, spikes), spikes

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

    def __init__(
        self,
        recipe: NetworkRecipe,
        neuron: NeuronRecipe,
        encoding: Encoding,
        classes: int,
        population: PopulationRecipe | None = None,
    ) -> None:
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps
        self.simulator = recipe.substrate
        given = population if population and population.equations else None
        self.spiking = given is None or given.output == "spikes"
        self.blocks = nn.ModuleList()
        units, sites = encoding.units, []
        for index, width in enumerate(recipe.hidden):
            block = nn.ModuleDict({"synapse": nn.Linear(units, width)})
            name, recurrent = f"blocks.{index}", recipe.recurrent
            if recurrent:
                block["recurrent"] = nn.Linear(width, width, bias=False)
            block["activity"] = self._population(recipe, neuron, given, f"{name}.activity", width)
            self.blocks.append(block)
            layers = (f"{name}.synapse", *([f"{name}.recurrent"] if recurrent else []))
            time = (True, False)[: len(layers)]
            sites.append(Site(f"{name}.synapse", layers, time, f"{name}.activity"))
            units = width
        self.readout = nn.Linear(units, classes)
        self.sites = (*sites, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))
        self.filtered = Readout.of(neuron, self.steps, encoding.dt_ms)

    def _population(
        self,
        recipe: NetworkRecipe,
        neuron: NeuronRecipe,
        given: PopulationRecipe | None,
        name: str,
        width: int,
    ) -> nn.Module:
        """Return the population of a block, by substrate."""
        assert self.encoding is not None
        dt_ms = self.encoding.dt_ms
        membrane = Membrane.of(neuron, dt_ms)
        if recipe.substrate == "brian2":
            from biograd.networks.brian import Brian2Layer, leaky_integrate_and_fire
            from biograd.networks.neuron_model import Details

            if given is None:
                return leaky_integrate_and_fire(membrane, width, self.steps, dt_ms, name)
            return Brian2Layer(
                given,
                width,
                self.steps,
                dt_ms,
                neuron.surrogate,
                neuron.slope,
                "population",
                details=Details(stream=name),  # the recipe is that of all blocks, the draws are not
            )
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
