"""Optimisers of torch by name, with whatever settings their classes take."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from biograd.errors import RecipeError, brief, nearest
from biograd.recipes import TrainingRecipe
from biograd.recipes.learning import OPTIMISERS

OWN = ("params", "lr", "weight_decay")
"""Arguments that have keys of their own."""
RUNTIME = ("foreach", "fused", "capturable", "differentiable", "maximize")
"""Arguments that say how sums are computed, or turn learning round."""
HIDDEN_FROM_COMPILER = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""Methods that import ``torch._dynamo`` to say that it must not record them."""


def make_optimiser(recipe: TrainingRecipe, parameters: Iterable[nn.Parameter]) -> Any:
    """Return the recipe's optimiser of the parameters that are trained.

    Raises:
        RecipeError: a setting that torch's class does not have, or refuses.
    """
    kind = _uncompiled(getattr(torch.optim, OPTIMISERS[recipe.optimiser]))
    given = {**_shared(recipe), **_settings(kind, recipe)}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        return kind(trained, recipe.learning_rate, **given)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"training.optimiser_settings: {recipe.optimiser}: {brief(str(error))}"
        ) from error


@cache
def _uncompiled(kind: Any) -> Any:
    """Return an optimiser's class as it is within torch's wrappers for ``torch.compile``.

    Why: they wait more than a second for an import that no step needs.  Hooks of a step stay, and
    so does everything else of the class.
    """
    inner: dict[str, Any] = {n: inspect.unwrap(getattr(kind, n)) for n in HIDDEN_FROM_COMPILER}
    inner["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **inner})


def check_optimiser(recipe: TrainingRecipe) -> None:
    """Refuse settings of the optimiser before there is anything to train."""
    make_optimiser(recipe, [nn.Parameter(torch.zeros(1))])


def _shared(recipe: TrainingRecipe) -> dict[str, float]:
    if recipe.optimiser == "rprop":
        return {}
    decay = {"weight_decay": recipe.weight_decay}
    return decay | ({"momentum": recipe.momentum} if recipe.optimiser == "sgd" else {})


def _settings(kind: Any, recipe: TrainingRecipe) -> Mapping[str, Any]:
    """Return the settings as torch takes them: lists become tuples."""
    own = (*OWN, "momentum") if recipe.optimiser == "sgd" else OWN
    known = [name for name in inspect.signature(kind).parameters if name not in (*own, *RUNTIME)]
    for name, value in recipe.optimiser_settings.items():
        where = f"training.optimiser_settings.{name}"
        if name in own[1:]:
            key = "learning_rate" if name == "lr" else name
            raise RecipeError(f"{where}: has a key of its own, training.{key}")
        if name not in known:
            raise RecipeError(f"{where}: {recipe.optimiser} has none: {nearest(name, known)}")
        flags = isinstance(inspect.signature(kind).parameters[name].default, bool)
        if not (isinstance(value, bool) if flags else _numbers(value)):
            due = "true or false" if flags else "a finite number, or a list of such"
            raise RecipeError(f"{where} = {value!r}: must be {due}")
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in recipe.optimiser_settings.items()
    }


def _numbers(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_numbers(one) for one in value)
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
