"""The estimators: each decides how forward passes are run and what credit every layer gets.

To add one: write a class in a file of its own, and name it in ``ESTIMATORS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biograd.errors import RecipeError, nearest
from biograd.estimators.backpropagation import Backpropagation
from biograd.estimators.estimator import Estimator
from biograd.estimators.frozen_hidden import FrozenHidden
from biograd.estimators.node_perturbation import NodePerturbation
from biograd.estimators.weak_gradient import WeakGradient
from biograd.estimators.weight_perturbation import WeightPerturbation
from biograd.recipes import construct

__all__ = [
    "ESTIMATORS",
    "Backpropagation",
    "Estimator",
    "FrozenHidden",
    "NodePerturbation",
    "WeakGradient",
    "WeightPerturbation",
    "make",
]

ESTIMATORS: dict[str, type[Estimator]] = {
    "backprop": Backpropagation,
    "weak": WeakGradient,
    "node_perturbation": NodePerturbation,
    "weight_perturbation": WeightPerturbation,
    "frozen_hidden": FrozenHidden,
}


def make(name: str, settings: Mapping[str, Any] | None = None, where: object = "") -> Estimator:
    """Return the estimator ``name`` with ``settings``, checked like every recipe.

    Raises:
        RecipeError: no such estimator, or a setting that it does not have.

    >>> make("weak", {"copies": 9}).copies
    9
    """
    if name not in ESTIMATORS:
        raise RecipeError(f"no estimator {name!r}: {nearest(name, ESTIMATORS)}")
    return construct(ESTIMATORS[name], settings or {}, where or "estimator", f"estimators.{name}")
