"""Weights from which every hidden layer begins to fire: their scale from measured rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biograd.checking import convert
from biograd.contracts import Objective, Plan, Site
from biograd.engine import Engine
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.estimators import NodePerturbation
from biograd.events.event_network import EventNetwork
from biograd.networks import Sites
from biograd.substrate.kept import Reset
from biograd.substrate.return_values import Outputs
from biograd.tasks import Task

TOLERANCE = 0.02
"""Relative difference from the rate asked for at which a layer is done."""
LARGEST = 2.0**20
"""Factor on the weights beyond which, or below whose inverse, no scale is looked for."""
STEPS = 60
"""Scales that are tried in one layer."""
SWEEPS = 8
"""Turns through all layers, where later ones feed back."""


class StartingRate(NamedTuple):
    """What became of one layer: spikes a unit and step before and after, and the factor."""

    before: float
    after: float
    factor: float


def tune_init(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    rate: float | Mapping[str, float] = 0.05,
    *,
    task: Task | None = None,
    sites: Sites | None = None,
    reset: Reset | None = None,
    outputs: Outputs | None = None,
) -> dict[str, StartingRate]:
    """Scale the weights of each spiking hidden layer until its units fire at a given rate.

    The layers take their turns in the order of the data flow, again where some feed back.  All
    weights that feed one current get one factor ``g``, found by bisection of ``log g`` on the mean
    number of spikes a unit and step over ``inputs``; the shape of their distribution, the share of
    recurrent weights, biases and the readout stay as they are.  Call it before a rule is attached:
    rules, and decorrelation, look at the weights that they find.

    Args:
        inputs: a batch, ``[B, ...]``; the larger, the nearer the rate of other data.
        targets: of the batch, as the task takes them; the rates do not depend on them.
        rate: spikes a unit and step, between 0 and 1; by the name of a site, others stay.
        task, sites, reset, outputs: as in ``attach``.

    Returns:
        what became of every layer, by the name of its site.

    Raises:
        RecipeError: a rate outside of 0 to 1, or of no such site.
        CapabilityError: a layer does not fire, or not at this rate whatever the scale.

    Source: the condition (all layers fire at the start), not the method, is that of J. Rossbroich,
    J. Gygax & F. T. Zenke, Neuromorphic Computing and Engineering 2:044016 (2022).
    """
    if isinstance(network, EventNetwork):
        raise CapabilityError(
            "tune_init: event-driven neurons have no steps to count spikes in: take neuron.kind = "
            "'leaky'"
        )
    looks = NodePerturbation()  # a rule that must know which layers feed one current
    engine = Engine(
        network, looks, task=task, sites=sites, reset=reset, outputs=outputs, outside="exact"
    )
    try:
        engine.prepare(inputs, targets)
        return _tuned(engine, inputs, targets, rate)
    finally:
        engine.detach()


def _tuned(
    engine: Engine, inputs: Tensor, targets: Tensor, rate: float | Mapping[str, float]
) -> dict[str, StartingRate]:
    hidden = [site for site in engine.substrate.sites[:-1] if site.block is None]
    asked = _asked(rate, [site.name for site in hidden])
    encoded = engine.substrate.encode(inputs, engine.streams["encoding"])
    measures = {name: _Measure(engine, encoded, targets, name) for name in asked}
    before = {name: measure() for name, measure in measures.items()}
    scales = {site.name: _Scale(_weights(engine, site)) for site in hidden if site.name in asked}
    try:
        after = _swept(measures, scales, asked)
    except BaseException:
        for scale in scales.values():
            scale.set(1.0)
        raise
    return {n: StartingRate(before[n], after[n], scale.factor) for n, scale in scales.items()}


def _swept(
    measures: Mapping[str, _Measure], scales: Mapping[str, _Scale], asked: Mapping[str, float]
) -> dict[str, float]:
    """Scale each layer in its turn, again where later ones feed back, and return the rates.

    Raises:
        CapabilityError: they do not come to rest.
    """
    for _ in range(SWEEPS):
        for name, scale in scales.items():
            _search(measures[name], scale, asked[name])
        after = {name: measure() for name, measure in measures.items()}
        off = [name for name in asked if abs(after[name] - asked[name]) > 0.1 * asked[name]]
        if not off:
            return after
    raise CapabilityError(
        f"tune_init: {', '.join(off)}: the rates of layers that feed back do not come to rest "
        f"after {SWEEPS} turns: tune fewer of them, rate={{'site': 0.05}}, or ask for other rates"
    )


def _weights(engine: Engine, site: Site) -> list[nn.Parameter]:
    """Return all weights that feed the neurons of a block."""
    sites = (site, *(one for one in engine.substrate.sites if one.block == site.name))
    return [_weight(engine.network, name) for one in sites for name in one.modules]


def _asked(rate: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    table = dict(rate) if isinstance(rate, Mapping) else dict.fromkeys(names, rate)
    for name, value in table.items():
        if name not in names:
            raise RecipeError(f"tune_init: rate: no hidden site {name!r}: {nearest(name, names)}")
        convert(float, value, "tune_init", f"rate of {name}")
        if not 0 < value < 1:
            raise RecipeError(f"tune_init: rate = {value!r}: must be between 0 and 1 spikes a step")
    if not table:
        raise RecipeError("tune_init: no layer to tune: the network has no hidden site")
    return table


class _Scale:
    """The weights of a current as they were, by a factor."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights, self.kept = weights, [weight.detach().clone() for weight in weights]
        self.factor = 1.0

    @torch.no_grad()
    def set(self, factor: float) -> None:
        self.factor = factor
        for weight, kept in zip(self.weights, self.kept, strict=True):
            weight.copy_(kept * factor)


def _weight(network: nn.Module, name: str) -> nn.Parameter:
    """Return the weight of a layer if it is free to be scaled."""
    weight = network.get_submodule(name)._parameters.get("weight")
    owners = [n for n, p in network.named_parameters(remove_duplicate=False) if p is weight]
    if weight is None:
        reason = "has no weight of its own (another parametrisation makes it)"
    elif not weight.requires_grad:
        reason = "is frozen"
    elif len(owners) > 1:
        reason = f"shares its weight ({', '.join(owners)})"
    else:
        return weight
    raise CapabilityError(f"tune_init: {name} {reason}: tune the others, rate={{'site': 0.05}}")


class _Measure:
    """The rate of a block over a batch, spikes a unit and step."""

    def __init__(self, engine: Engine, encoded: Tensor, targets: Tensor, name: str) -> None:
        self.engine, self.encoded, self.targets, self.name = engine, encoded, targets, name
        self.dropout = engine.streams["dropout"].get_state()
        nothing = {name: lambda activity, _: activity.new_zeros(len(activity))}
        self.objective = Objective(lambda outputs, _: outputs.new_zeros(len(outputs)), nothing)

    def __call__(self) -> float:
        """Return the rate.

        Raises:
            CapabilityError: what the block passes on is no spikes.
        """
        stream = self.engine.streams["dropout"]
        stream.set_state(self.dropout)
        substrate = self.engine.substrate
        given = (self.encoded, self.targets, self.objective, stream)
        activity = substrate.run(Plan(graph=False), *given).sites[self.name].output
        if not bool(((activity == 0) | (activity == 1)).all()):
            raise CapabilityError(
                f"tune_init: {self.name} passes on other values than spikes, which have no rate: "
                "take a spiking network, or tune the layers that spike, rate={'site': 0.05}"
            )
        return float(activity.mean(dtype=torch.float64))


def _search(measure: _Measure, scale: _Scale, rate: float) -> None:
    """Set the factor whose rate is nearest, from the one that is set."""
    now, low, high = measure(), 0.0, math.inf
    best, found = scale.factor, now
    for _ in range(STEPS):
        if abs(now - rate) <= TOLERANCE * rate:
            break
        low, high = (scale.factor, high) if now < rate else (low, scale.factor)
        factor = _next(low, high)
        if not 1 / LARGEST <= factor <= LARGEST or (low and high / low < 1 + 1e-6):
            break
        scale.set(factor)
        now = measure()
        if abs(now - rate) < abs(found - rate):
            best, found = factor, now
    _check(measure, rate, found)
    scale.set(best)


def _next(low: float, high: float) -> float:
    if high == math.inf:
        return 2 * low
    return math.sqrt(low * high) if low else high / 2


def _check(measure: _Measure, rate: float, found: float) -> None:
    if abs(found - rate) <= 0.1 * rate:
        return
    reason = (
        "it fires as often whatever its weights: biases or a normalisation decide it"
        if found
        else "nothing reaches it: raise the input (encoding.gain), or begin with earlier layers"
    )
    raise CapabilityError(
        f"tune_init: {measure.name}: {rate:g} spikes a unit and step cannot be reached, the "
        f"nearest is {found:.3g}: {reason}; or the batch is too small"
    )
