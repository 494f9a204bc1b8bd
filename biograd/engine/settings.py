"""Which keys of a model's recipe nothing reads: of the network, of the learning, of the rule."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from biograd.circuit import unread as of_network
from biograd.decorrelation import Decorrelation
from biograd.estimators import ESTIMATORS
from biograd.local import LocalLosses
from biograd.recipes import ModelRecipe, TrainingRecipe
from biograd.recipes.schedules import READS

TABLES = ("network", "mixer", "neuron", "population", "populations", "projections")


def unread(recipe: ModelRecipe, module: bool = False) -> dict[str, str]:
    """Return the keys of a recipe that nothing reads, dotted; of a whole table its name alone.

    Args:
        module: whether the network is a module of the user's.

    >>> unread(ModelRecipe())["training.momentum"]
    "with training.optimiser = 'adam'"
    """
    found = dict.fromkeys(TABLES, "on a module of yours") if module else of_network.unread(recipe)
    found |= _of_training(recipe.training)
    decorrelation, local = recipe.decorrelation, recipe.local
    found |= _switched("decorrelation", decorrelation, "rule", Decorrelation.unread)
    found |= _switched("local", local, "loss", LocalLosses.unread)
    return found | _of_rule(recipe, module)


def _of_training(training: TrainingRecipe) -> dict[str, str]:
    """Return what the optimiser and the schedule do not read."""
    optimiser, schedule = training.optimiser, training.schedule
    idle = {"sgd": (), "rprop": ("momentum", "weight_decay")}.get(optimiser, ("momentum",))
    found = {f"training.{name}": f"with training.optimiser = {optimiser!r}" for name in idle}
    read = READS.get(schedule, ())
    for name in {"decay", "milestones", "wait"}.difference(read):
        found[f"training.{name}"] = f"with training.schedule = {schedule!r}"
    return found


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
        idle |= {name: "on a network without time" for name in rule.in_time if name in values}
    looped = recipe.network.recurrent or recipe.network.kind == "circuit"
    if not module and not looped:
        idle |= {name: "without network.recurrent" for name in rule.recurrent if name in values}
    return {f"estimators.{recipe.estimator}.{name}": reason for name, reason in idle.items()}
