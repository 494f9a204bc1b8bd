"""Spiking networks in continuous time: spikes happen when they happen, not at time steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from biograd.circuit.delays import reflected, starting
from biograd.contracts import Capability, Objective, Plan, Site, SiteShape, Trace
from biograd.encoding import Current, Encoding, Latency, RowCurrent
from biograd.errors import CapabilityError, RecipeError
from biograd.events.spike_times import EventMembrane, arrivals, divided, respond
from biograd.neurons import EventDriven
from biograd.neurons.neuron import check_known
from biograd.recipes import DelayRecipe, NetworkRecipe
from biograd.substrate.network import Network, recorded
from biograd.substrate.passes import Pass
from biograd.substrate.torch_substrate import TorchSubstrate


class EventPopulation(nn.Module):
    """Leaky integrate-and-fire neurons with exact spike times (``events.spike_times``)."""

    def __init__(self, membrane: EventMembrane) -> None:
        super().__init__()
        self.membrane = membrane

    def forward(self, currents: Tensor, events: Tensor) -> Tensor:
        """Return the spike times ``[rows, units, K]`` in ms, the trial's end where there is none.

        Args:
            currents: what the synaptic layer made of ``arrivals``, ``[rows, 1 + 2 E, units]``.
            events: times of the input spikes in order, ``[rows, E]``.
        """
        times = respond(self.membrane, *divided(currents, events), events.double())
        return times.to(currents.dtype)

    def extra_repr(self) -> str:
        """Return the constants for ``print``."""
        return str(self.membrane)


class EventDelay(nn.Module):
    """Delays of axons in continuous time: a spike at ``t`` arrives at ``t + d``.

    Its derivative is exact, ``dL/dd = sum dL/dt`` over the arrivals (Meszaros et al. 2025, arXiv
    2501.07331).  A learned delay that leaves ``[0, longest]`` is reflected.

    Args:
        units: axons.
    """

    delays: Tensor

    def __init__(self, recipe: DelayRecipe, units: int, duration: float) -> None:
        super().__init__()
        where = "network.delays"
        if recipe.learned not in ("none", "exact"):
            raise RecipeError(
                f"{where}.learned = {recipe.learned!r}: spike times in continuous time lie in no "
                "steps: take 'exact' or 'none'"
            )
        if recipe.per == "synapse":
            raise RecipeError(
                f"{where}.per = 'synapse': an event would arrive at every neuron at a time of its "
                "own: take 'axon' or 'projection', or neuron.kind = 'leaky'"
            )
        self.recipe, self.duration = recipe, duration
        values = starting(recipe, (units if recipe.per == "axon" else 1,), where)
        if recipe.learned == "none":
            self.register_buffer("delays", values)
        else:
            self.delays = nn.Parameter(values / recipe.pace)

    def forward(self, times: Tensor) -> Tensor:
        """Return when spikes ``[rows, units, K]`` arrive; where there is none the trial's end."""
        late: Tensor = self.delays
        if self.recipe.learned == "exact":
            late = reflected(late * self.recipe.pace, self.recipe.longest_ms)
        there = times < self.duration
        return torch.where(there, times + late.unsqueeze(-1), self.duration)


class StepRaster(nn.Module):
    """Spike times ``[rows, units, K]`` as spikes in time steps ``[rows, steps, units]``, 0 or 1.

    For run files, which hold spikes in steps: several spikes in one step count as one.
    """

    def __init__(self, steps: int, dt_ms: float) -> None:
        super().__init__()
        self.steps, self.dt_ms = steps, dt_ms

    @torch.no_grad()
    def forward(self, times: Tensor) -> Tensor:
        """Return the spikes."""
        rows, units, _ = times.shape
        step = (times / self.dt_ms).long().clamp(max=self.steps)
        # the step behind the trial collects what is no spike
        spikes = times.new_zeros(rows, units, self.steps + 1).scatter_(2, step, 1)
        return spikes[..., : self.steps].mT


class EventNetwork(Network):
    """A feed-forward network of leaky integrate-and-fire neurons in continuous time.

    The readout is linear in the spikes' effect on the mean of a leaky integrator over the trial,
    ``c(t) = 1 - exp(-(T - t) / tau)``, scaled to a mean of 1: the limit of the stepped network's
    "membrane" for short steps.  A spike that drops out at the end of the trial changes nothing.

    Why a layer is called on traces of single spikes (``arrivals``): its outputs then carry all
    that the spike times behind it depend on, so that cutting, injecting and folding there mean
    what they mean in every other network.

    Raises:
        RecipeError: recurrent layers, spike counts as readout, input that is a varying current.
    """

    spiking = True

    def __init__(
        self, recipe: NetworkRecipe, neuron: EventDriven, encoding: Encoding, outputs: int
    ) -> None:
        _check(recipe, neuron, encoding)
        super().__init__()
        self.encoding, self.steps = encoding, encoding.steps
        check_known(neuron, EventDriven, "the event-driven network")
        self.neuron, self.membrane = neuron, EventMembrane.of(neuron, encoding)
        self.readout_time_constant = recipe.readout_time_constant_ms
        self.blocks = nn.ModuleList()
        units, sites = encoding.units, []
        for index, width in enumerate(recipe.hidden):
            delays: dict[str, nn.Module] = {}
            if recipe.delays is not None and (index or not isinstance(encoding, Current)):
                delays["delay"] = EventDelay(recipe.delays, units, self.membrane.duration)
            block = delays | {
                "synapse": nn.Linear(units, width),
                "activity": EventPopulation(self.membrane),
                "raster": StepRaster(self.steps, encoding.dt_ms),
            }
            self.blocks.append(nn.ModuleDict(block))
            name = f"blocks.{index}"
            sites.append(Site(f"{name}.synapse", (f"{name}.synapse",), (True,), f"{name}.activity"))
            units = width
        self.readout = nn.Linear(units, outputs)
        self.sites = (*sites, Site("readout", ("readout",), (False,)))
        self.populations = tuple(f"blocks.{index}.raster" for index in range(len(self.blocks)))

    def describe_neurons(self) -> dict[str, Any]:
        """Return the kind of neuron and its constants, as JSON values."""
        return dataclasses.asdict(self.neuron)

    def make_substrate(self) -> EventSubstrate:
        """Return who runs this network."""
        return EventSubstrate(self)

    def encode(self, inputs: Tensor, stream: torch.Generator) -> Tensor:
        """Return a constant current ``[B, 1, units]``, or spike times ``[B, units, K]`` in ms."""
        encoding = self.encoding
        assert encoding is not None
        inputs = inputs.to(next(self.parameters()).dtype)
        if isinstance(encoding, Latency):
            encoding(inputs[:1], stream)  # checks the shape
            times = encoding.times(inputs.reshape(len(inputs), encoding.units, 1))
            return times.clamp(max=self.membrane.duration)
        encoded = encoding(inputs, stream)
        return encoded if isinstance(encoding, Current) else self._times(encoded)

    def _times(self, spikes: Tensor) -> Tensor:
        """Return the times ``[B, units, K]`` of spikes ``[B, steps, units]``: where steps begin."""
        assert self.encoding is not None
        step = torch.arange(self.steps, dtype=spikes.dtype, device=spikes.device)
        step = step.view(1, -1, 1) * self.encoding.dt_ms
        times = torch.where(spikes > 0, step, self.membrane.duration).sort(dim=1).values
        most = int(spikes.sum(1).max()) if spikes.numel() else 0
        return times[:, :most].mT

    def simulate(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, outputs]`` for what ``encode`` returned."""
        return self.readout(self.filtered(self._respond(encoded)))

    def _respond(self, encoded: Tensor) -> Tensor:
        """Return the spike times of the last population."""
        times = encoded
        for index, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleDict)
            if index or not isinstance(self.encoding, Current):
                late = block["delay"](times) if "delay" in block else times
                received, events = arrivals(self.membrane, late)
            else:
                received, events = encoded, encoded.new_zeros(len(encoded), 0)
            times = block["activity"](block["synapse"](received), events)
            block["raster"](times.detach())
        return times

    def filtered(self, times: Tensor) -> Tensor:
        """Return the input of the readout ``[rows, units]`` for times ``[rows, units, K]``."""
        trial, decay = self.membrane.duration, self.readout_time_constant
        mean = 1 - decay / trial * (1 - math.exp(-trial / decay))
        return -torch.expm1((times - trial) / decay).sum(-1) / mean

    @torch.no_grad()
    def spike_times(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the spike times of each population, ``[B, units, K]`` in ms, infinite if none."""
        names = tuple(f"blocks.{index}.activity" for index in range(len(self.blocks)))
        with recorded(self, names) as outputs:
            self(inputs)
        end = self.membrane.duration
        return {
            name: torch.where(times < end, times, math.inf) for name, (times,) in outputs.items()
        }


class EventSubstrate(TorchSubstrate):
    """Runs plans on an event-driven network, whose currents have a row for each event.

    Perturbations are constant currents over the trial.  The activity of a block is a list of
    spike times whose length varies, so that it cannot stand in for another one's: blocks are not
    differentiated by themselves.
    """

    capabilities: frozenset[Capability] = TorchSubstrate.capabilities - {"local_vjp"}

    def run(
        self,
        plan: Plan,
        encoded: Tensor,
        targets: Tensor,
        objective: Objective,
        stream: torch.Generator | None = None,
    ) -> Trace:
        """Run one round.

        Raises:
            CapabilityError: the plan asks for time bins, another derivative of spikes, or a
                boundary between blocks.
        """
        if plan.boundaries or plan.clamp or objective.local or objective.bounds:
            raise CapabilityError(
                "an event-driven block passes on lists of spike times whose length varies: no "
                "target, local loss or boundary can be set there; use neuron.kind = 'leaky'"
            )
        if plan.time_bin is not None:
            raise CapabilityError(
                "time_bin: an event-driven network has no time steps: leave it out"
            )
        if plan.transport.derivative is not None:
            raise CapabilityError(
                "exact spike times have no surrogate derivative that another could replace: use "
                "neuron.kind = 'leaky'"
            )
        return super().run(plan, encoded, targets, objective, stream)

    def _shape(self, site: Site, now: Pass) -> SiteShape:
        shape = super()._shape(site, now)
        rows = now.visits[site.name][0].outputs[0].shape[1]
        return dataclasses.replace(shape, steps=rows) if site.time[0] else shape


def _check(recipe: NetworkRecipe, neuron: EventDriven, encoding: Encoding) -> None:
    for key in ("recurrent", "channels", "residual", "dropout", "normalisation"):
        if getattr(recipe, key) != getattr(NetworkRecipe, key):
            raise RecipeError(f"network.{key}: exact spike times need dense feed-forward layers")
    if recipe.delays is not None and len(recipe.hidden) == 1 and isinstance(encoding, Current):
        raise RecipeError(
            "network.delays: a constant current into one layer has no spikes to delay"
        )
    if recipe.substrate != "torch":
        raise RecipeError("neuron.kind = 'event_driven': needs network.substrate = 'torch'")
    if neuron.trainable:
        raise RecipeError("neuron.trainable: constants of event-driven neurons are not learned")
    if recipe.readout != "membrane":
        raise RecipeError(
            f"network.readout = {recipe.readout!r}: spike counts have no derivative by spike "
            "times; use 'membrane'"
        )
    shortest = min(neuron.time_constant_ms, neuron.synaptic_time_constant_ms)
    longest = 0.9 * math.log(torch.finfo(getattr(torch, recipe.dtype)).max) * shortest
    if encoding.duration_ms > longest > 0:  # a trace left at the end would vanish
        raise RecipeError(
            f"encoding.duration_ms = {encoding.duration_ms:g}: exact spike times in {recipe.dtype} "
            f"need trials of {longest:.0f} ms at most, by the shortest time constant"
        )
    if isinstance(encoding, RowCurrent):
        raise RecipeError(
            "encoding.kind = 'rows': exact spike times need a constant current or spikes; use "
            "latency, poisson, delta or current"
        )
