"""What can be run in parts, and who runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from biograd.circuit.circuit import Circuit
from biograd.circuit.graph import SKIP, Block, Projection
from biograd.contracts import Substrate
from biograd.engine.in_parts.online import Online
from biograd.engine.in_parts.recomputed import Recomputed
from biograd.engine.in_parts.trial_parts import TrialParts
from biograd.errors import CapabilityError
from biograd.estimators import Estimator
from biograd.neurons.stepped import SteppedPopulation
from biograd.simulators.gathered import GatheringLinear
from biograd.tasks import Task

OFF = {
    "decorrelation": "leave it out, decorrelation.rule = 'off'",
    "local losses": "leave them out, local.loss = 'off'",
    "activity": "has bounds: leave them out, activity.weight = 0",
}
"""What may be attached beside a rule, and how a recipe is told to leave it out."""
LINEAR = (nn.Linear.forward, GatheringLinear.forward)


def in_parts(
    estimator: Estimator,
    network: nn.Module,
    task: Task,
    substrate: Substrate,
    beside: Mapping[str, object],
    outside: str,
) -> TrialParts | None:
    """Return who runs a rule in parts of a trial; None: it runs whole trials.

    Args:
        beside: what else was attached, by a name in ``OFF``.
        outside: what becomes of parameters that the rule does not credit.

    Raises:
        CapabilityError: what cannot be run in parts, with the place and the way out.
    """
    setting = next((n for n in ("online", "recompute") if getattr(estimator, n)), "")
    if not setting:
        return None
    given = [name for name, one in beside.items() if one is not None]
    why = f"{given[0]}: would look at whole trials: {OFF[given[0]]}" if given else ""
    if outside == "exact":
        why = "outside = 'exact' stores every step"
    elif not why and not isinstance(network, Circuit):
        why = f"{type(network).__name__} runs through time by itself: take one of biograd.build"
    circuit = cast(Circuit, network)
    why = why or _undivided(circuit, task)
    if setting == "online" and not why:
        own = "sites of your own may hold several populations: leave sites out"
        why = own if getattr(substrate, "named", False) else _traceless(circuit)
    if why:
        raise CapabilityError(
            f"{type(estimator).__name__}: {setting} = true: {why}; or take {setting} = false"
        )
    kind = Online if setting == "online" else Recomputed
    return kind(circuit, estimator, task, substrate.sites)


def _undivided(network: Circuit, task: Task) -> str:
    """Return why a circuit cannot be run in parts; "": it can."""
    if network.steps < 2 or network.encoding is None:
        return "the network has no time"
    for name, one in network.graph.blocks.items():
        if not isinstance(one.cells, SteppedPopulation) or network.simulator == "brian2":
            return f"{name} is simulated by Brian2, a whole trial at once"
        over = [n for n, m in one.before.items() if getattr(m, "kind", "layer") != "layer"]
        if over:
            return f"{name}.{over[0]} normalises over the whole trial"
    for way in network.graph.projections:
        own = way.source == way.target and way.lag == 1
        late = way.longest is not None or (way.lag and not own)
        if network.graph.together or late:
            return f"{way.path} leads back, or comes later than at once, from part to part"
    if getattr(getattr(network, "filtered", None), "kind", "") == "first_spike":
        return "network.readout = 'first_spike': the weight of a step depends on other steps"
    if task.closed_loop or not task.differentiable:
        return f"the task {type(task).__name__} has no gradient at the end of a part"
    if hasattr(network, "behind") and not task.timed:
        return "outputs in every step need a task in time, as tasks.Regression(timed=True)"
    if task.timed and type(task).part is Task.part:
        return f"the loss of {type(task).__name__} is no mean of what its steps lose by themselves"
    return ""


def _traceless(network: Circuit) -> str:
    """Return why a circuit's synapses cannot have traces; "": they can."""
    places = [*map(_of_block, network.graph.blocks.values())]
    places += map(_of_projection, network.graph.projections)
    heard = network.heard
    if len(heard) != 1 or heard[0].part is not None or heard[0].path != network.graph.order[-1]:
        places.append("the readout listens to others than the last population")
    if getattr(type(network.readout), "forward", None) not in LINEAR:
        places.append(f"the readout, {type(network.readout).__name__}, has no weights")
    else:
        places.append(_made("readout", network.readout))
    return next(filter(None, places), "")


def _of_block(one: Block) -> str:
    if getattr(one.cells, "factors", None):
        return f"{one.site} learns constants of its neurons, which have no trace"
    inside = [name for name, _ in (*one.before.items(), *one.after.items())]
    if inside or not one.inner:
        return f"{one.path} holds {(*inside, 'a circuit of its own')[0]}, which no trace passes"
    return ""


def _of_projection(way: Projection) -> str:
    if way.port == SKIP:
        return f"{way.path} goes around a population, which no trace does"
    if getattr(type(way.layer), "forward", None) not in LINEAR:
        return f"{way.path} ({type(way.layer).__name__}) has no weight for each synapse"
    return _made(way.path, way.layer)


def _made(path: str, layer: Any) -> str:
    """Return that a layer's weight is none of its parameters (weight normalisation), if so."""
    own = layer._parameters.get("weight") is not None
    return "" if own else f"{path} makes its weight of other parameters, which have no trace"
