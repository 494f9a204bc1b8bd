"""Settings of several runs that have no effect in some of them."""

from __future__ import annotations

from collections.abc import Iterable

from biograd.configuration.resolved import configure
from biograd.configuration.training_request import TrainingRequest
from biograd.engine.settings import unread
from biograd.errors import RecipeError
from biograd.recipes.model import covered


def without_effect(requests: Iterable[TrainingRequest]) -> dict[str, list[int]]:
    """Return the common assignments of several runs that have no effect in some of them.

    Returns:
        each with the places of these runs, but for those whose key names another estimator.

    Raises:
        RecipeError: one that has no effect in any.
    """
    idle: dict[str, list[int]] = {}
    named: dict[str, list[int]] = {}
    count = 0
    for place, request in enumerate(requests):
        count = place + 1
        for text, other in _without_effect(request):
            (named if other else idle).setdefault(text, []).append(place)
    for text in {**idle, **named}:
        if len(idle.get(text, ())) + len(named.get(text, ())) == count:
            raise RecipeError(f"--set {text}: has no effect in any of the {count} cells")
    return idle


def _without_effect(request: TrainingRequest) -> list[tuple[str, bool]]:
    """Return such assignments, and whether the key names another estimator than the run's."""
    configuration = configure(request)
    recipe, idle = configuration.recipe, unread(configuration.recipe, configuration.module)
    found = []
    for text in request.common:
        key = text.partition("=")[0].strip()
        other = key.startswith("estimators.") and key.split(".")[1] != recipe.estimator
        if other or covered(key, idle):
            found.append((text, other))
    return found
