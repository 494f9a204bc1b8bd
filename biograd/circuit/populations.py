"""The neurons of a recipe on its simulator, and what is read of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from biograd.circuit.readouts import Counts, LeakyReadout, Readout
from biograd.contracts.trial_part import TrialPart
from biograd.encoding import Encoding
from biograd.errors import RecipeError
from biograd.neurons import EventDriven, Leaky, Neuron, Spiking
from biograd.recipes import ModelRecipe, PopulationRecipe
from biograd.simulators.gathered import GatheringLinear
from biograd.simulators.population import Population
from biograd.substrate.normalisation import TimeNormalisation


class LastStep(nn.Module):
    """What a population passes on in the last step.

    Attributes:
        part: the part of a trial that is read; None: the whole trial.
    """

    part: TrialPart | None = None

    def weigh(self, part: TrialPart) -> tuple[Tensor, float]:
        """Return the weights of a part's steps, ``[steps]``, and what is kept of those before."""
        weights = torch.zeros(part.steps, dtype=torch.float64)
        weights[-1] = float(part.last)
        return weights, 1.0

    def forward(self, course: Tensor) -> Tensor:
        """Return ``[rows, units]`` of ``[rows, steps, units]``."""
        ended = self.part is None or self.part.last
        return course[:, -1] if ended else course[:, -1] * 0


def normalised(
    kind: Literal["batch", "layer"], shape: tuple[int, ...], neuron: Neuron, steps: int
) -> TimeNormalisation:
    """Return the normalisation of a population's current; its gain starts at the threshold."""
    threshold = getattr(neuron, "threshold", 1.0)
    start = threshold if isinstance(threshold, float) else 1.0
    return TimeNormalisation(shape, kind, threshold=start, steps=steps)


def make_population(
    neuron: Neuron,
    given: PopulationRecipe | None,
    units: int,
    encoding: Encoding,
    simulator: Any,
    stream: str,
    where: str,
    own: Neuron,
    ports: tuple[str, ...] = (),
) -> tuple[nn.Module, bool]:
    """Return the neurons of a population, and whether they pass on spikes.

    Args:
        neuron: their kind, where ``given`` has no equations.
        given: equations for Brian2.
        stream: what tells their random numbers from those of other populations.
        where: opens every message about equations or fields.
        own: the neuron of the recipe: of it, the surrogate at the threshold of equations.
        ports: input variables of the equations; empty: that of the recipe.

    Raises:
        RecipeError: equations elsewhere than in Brian2, or neurons in continuous time.
    """
    if given is not None and given.equations:
        return _equations(given, units, encoding, simulator, stream, where, own, ports)
    if isinstance(neuron, EventDriven):
        raise RecipeError(
            "neuron.kind = 'event_driven': needs network.kind = 'spiking', network.substrate = "
            "'torch', and none of network.channels, recurrent, residual, dropout, normalisation"
        )
    made = Population(
        neuron, units, encoding.steps, encoding.dt_ms, simulator, where, stream=stream
    )
    return made, neuron.spiking


def _equations(
    given: PopulationRecipe,
    units: int,
    encoding: Encoding,
    simulator: str,
    stream: str,
    where: str,
    own: Neuron,
    ports: tuple[str, ...],
) -> tuple[nn.Module, bool]:
    if simulator != "brian2":
        raise RecipeError(
            f"{where}.equations: need network.substrate = 'brian2', not {simulator!r}"
        )
    from biograd.brian.layer import Brian2Layer
    from biograd.brian.neuron_model import Details

    surrogate = own if isinstance(own, Spiking) else Leaky()
    where = "population" if where == "neuron" else where
    layer = Brian2Layer(
        given,
        units,
        encoding.steps,
        encoding.dt_ms,
        surrogate.surrogate,
        surrogate.slope,
        where,
        details=Details(ports=ports, stream="" if stream == where else stream),
    )
    return layer, given.output == "spikes"


def reading(
    recipe: ModelRecipe, encoding: Encoding, timed: bool, units: int, outputs: int
) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Return the readout of ``units``, what stands before it, and behind it for every step.

    Raises:
        RecipeError: the units themselves are to be the outputs, but their numbers differ.
    """
    network = recipe.network
    if network.readout == "counts":
        if units != outputs:
            raise RecipeError(
                f"network.readout = 'counts': {units} units are the outputs, the task has {outputs}"
            )
        if timed:
            return Counts(), None, nn.Identity()
        return Counts(), Readout("rate", encoding.steps), None
    rate = network.kind == "rate"
    layer = (GatheringLinear if timed and not rate else nn.Linear)(units, outputs)
    if timed:
        return layer, None, nn.Identity() if rate else LeakyReadout.of(network, encoding.dt_ms)
    if rate:
        return layer, LastStep(), None
    return layer, Readout.of(network, encoding.steps, encoding.dt_ms), None
