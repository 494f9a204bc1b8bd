"""Which keys of a model's recipe nothing reads: of the network, of the learning, of the rule."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from biograd.circuit import unread as of_network
from biograd.contracts import Site
from biograd.decorrelation import Decorrelation
from biograd.encoding import ENCODINGS
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator
from biograd.local import LocalLosses
from biograd.neurons import EventDriven
from biograd.recipes import ModelRecipe, TrainingRecipe
from biograd.recipes.schedules import READS

TABLES = ("network", "mixer", "neuron", "population", "populations", "projections")


def unread(recipe: ModelRecipe, module: bool = False) -> dict[str, str]:
    """Return the keys of a recipe that nothing reads, dotted; of a whole table its name alone.

    Args:
        module: whether the network is a module of the user's that no recipe names.

    >>> unread(ModelRecipe())["training.momentum"]
    "with training.optimiser = 'adam'"
    """
    module = module or bool(recipe.module.source)
    found = _of_module(recipe) if module else _of_network(recipe)
    found |= _of_training(recipe.training)
    if not module and recipe.network.kind not in ("spiking", "circuit"):
        found["training.start_rate"] = "on a network without spikes"
    elif not module and recipe.network.kind == "spiking" and isinstance(recipe.neuron, EventDriven):
        found["training.start_rate"] = "with neuron.kind = 'event_driven', which has no steps"
    decorrelation, local = recipe.decorrelation, recipe.local
    found |= _switched("decorrelation", decorrelation, "rule", Decorrelation.unread)
    found |= _switched("local", local, "loss", LocalLosses.unread)
    if not recipe.activity.weight:
        names = [field.name for field in dataclasses.fields(recipe.activity)]
        found |= {f"activity.{n}": "with activity.weight = 0" for n in names if n != "weight"}
    return found | _of_rule(recipe, module)


def _of_network(recipe: ModelRecipe) -> dict[str, str]:
    return of_network.unread(recipe) | {
        "module": "on a network of biograd: it is for modules of your own"
    }


def _of_module(recipe: ModelRecipe) -> dict[str, str]:
    """Return the keys that a module does not read: of the encoding all but the steps of time."""
    found = dict.fromkeys(TABLES, "on a module of yours")
    kind = ENCODINGS.get(recipe.encoding.kind)
    why = "on a module of yours, which gets the data as they are"
    if kind is not None and not kind.timed:
        found["encoding.kind"] = f"{why}: only 'given', which says that they have a time axis, has"
    return found | {
        f"encoding.{field.name}": why
        for field in dataclasses.fields(recipe.encoding)
        if field.name not in ("kind", "dt_ms")
    }


def _of_training(training: TrainingRecipe) -> dict[str, str]:
    """Return what the optimiser and the schedule do not read."""
    optimiser, schedule = training.optimiser, training.schedule
    idle = {"sgd": (), "rprop": ("momentum", "weight_decay")}.get(optimiser, ("momentum",))
    found = {f"training.{name}": f"with training.optimiser = {optimiser!r}" for name in idle}
    read = READS.get(schedule, ())
    for name in {"decay", "milestones", "wait"}.difference(read):
        found[f"training.{name}"] = f"with training.schedule = {schedule!r}"
    return found


def check_read(estimator: Estimator, sites: Sequence[Site], steps: int, populations: bool) -> None:
    """Refuse settings of a rule that act on nothing in the network that it is attached to.

    Args:
        sites: of the network.
        steps: the most that a site's current has.
        populations: whether the network holds neurons of biograd's over time.

    Raises:
        CapabilityError: with the setting and what is missing.
    """
    kind, looped = type(estimator), any(site.inner or site.modules[1:] for site in sites)
    idle = {} if steps > 1 else dict.fromkeys(kind.in_time, STILL)
    idle |= {} if populations else dict.fromkeys(kind.in_neurons, NEURONS)
    idle |= {} if looped else dict.fromkeys(kind.recurrent, LOOPS)
    for name, reason in idle.items():
        parameter = inspect.signature(kind).parameters.get(name)
        given = getattr(estimator, name, None)
        if parameter is not None and given != parameter.default:
            raise CapabilityError(f"{kind.__name__}: {name} = {given!r}: has no effect {reason}")


STILL = (
    "where no current has steps: leave it out, or name sites whose output is [rows, steps, units], "
    "attach(..., sites=[biograd.Site(..., time=(True,))])"
)
NEURONS = (
    "where no neurons of biograd's run over time: leave it out, or take a recurrent or spiking "
    "network of biograd.build"
)
LOOPS = (
    "where no site has recurrent layers: leave it out, or name them with the layer that feeds the "
    "same current, attach(..., sites={'site': ['layer', 'recurrent layer']})"
)


def _switched(table: str, given: Any, switch: str, idle: Any) -> dict[str, str]:
    """Return the keys of a table that are not read: all but the switch, where it is off."""
    values = dataclasses.asdict(given)
    if values[switch] == "off":
        reason = f"with {table}.{switch} = 'off'"
        return {f"{table}.{name}": reason for name in values if name != switch}
    return {f"{table}.{name}": reason for name, reason in idle(values).items()}


def _of_rule(recipe: ModelRecipe, module: bool) -> dict[str, str]:
    """Return the settings of the rule that nothing reads."""
    rule = ESTIMATORS.get(recipe.estimator)
    given = recipe.estimators.get(recipe.estimator, {})
    if rule is None or not isinstance(given, Mapping):
        return {}  # refused by its own name
    parameters = inspect.signature(rule).parameters
    values = {name: one.default for name, one in parameters.items()} | dict(given)
    try:
        idle = rule.unread(values)
    except (KeyError, TypeError, ValueError):  # a wrong value, likewise
        idle = {}
    if not module and not of_network.in_time(recipe.network):
        timed = (*rule.in_time, *rule.in_neurons)
        idle |= {name: "on a network without time" for name in timed if name in values}
    looped = recipe.network.recurrent or recipe.network.kind == "circuit"
    if not module and not looped:
        idle |= {name: "without network.recurrent" for name in rule.recurrent if name in values}
    return {f"estimators.{recipe.estimator}.{name}": reason for name, reason in idle.items()}
