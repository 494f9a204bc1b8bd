"""Which keys of a model's recipe nothing reads: of the network, of the learning, of the rule."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from biograd.circuit import unread as of_network
from biograd.decorrelation import Decorrelation
from biograd.encoding import ENCODINGS
from biograd.estimators import ESTIMATORS
from biograd.local import LocalLosses
from biograd.recipes import ModelRecipe

TABLES = ("network", "mixer", "neuron", "population", "populations", "projections")


def unread(recipe: ModelRecipe, module: bool = False) -> dict[str, str]:
    """Return the keys of a recipe that nothing reads, dotted; of a whole table its name alone.

    Args:
        module: whether the network is a module of the user's that no recipe names.

    >>> unread(ModelRecipe())["training.momentum"]
    "with training.optimiser = 'adam'"
    """
    found = _of_module(recipe) if module or recipe.module.source else _of_network(recipe)
    if recipe.training.optimiser != "sgd":
        found["training.momentum"] = f"with training.optimiser = {recipe.training.optimiser!r}"
    decorrelation, local = recipe.decorrelation, recipe.local
    found |= _switched("decorrelation", decorrelation, "rule", Decorrelation.unread)
    found |= _switched("local", local, "loss", LocalLosses.unread)
    return found | _of_rule(recipe, module or bool(recipe.module.source))


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
