"""Learned constants: from what the optimiser moves to values in their units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.quantities import quantity
from biograd.neurons.neuron import Neuron
from biograd.neurons.values import bounded, spread, value
from biograd.recipes import ModelRecipe

FACTORS = re.compile(
    r"(blocks\.\d+\.activity|cells\.(\w+?)(?:\.activity)?(?:\.layer)?)\.factors\.(\w+)"
)
"""Name of a population's parameter in the network of a recipe."""


class Learned(NamedTuple):
    """A learned constant over the neurons of a population, in ``unit``."""

    population: str
    constant: str
    mean: float
    lowest: float
    highest: float
    unit: str


def in_units(recipe: ModelRecipe, tensors: Mapping[str, Tensor]) -> list[Learned]:
    """Return the learned constants of a recipe's network.

    Args:
        tensors: its parameters by name.
    """
    found = []
    for name, factor in tensors.items():
        match = FACTORS.fullmatch(name)
        if match is None:
            continue
        layer, circuit, constant = match.groups()
        population = recipe.populations.get(circuit) if circuit else recipe.population
        if population is not None and not population.equations:
            neuron, stream = population.neuron or recipe.neuron, f"populations.{circuit}"
            if constant in neuron.trainable:
                name, stream = (circuit, stream) if circuit else (layer, layer)
                found.append(_of_neuron(neuron, name, stream, constant, factor.double()))
            continue
        if population is None or constant not in population.trainable:
            continue
        given = quantity(population.namespace[constant], f"namespace.{constant}")
        values = value(factor.double(), float(np.asarray(given)), *population.trainable[constant])
        found.append(_described(circuit or layer, constant, values.numpy(), given))
    return found


def _of_neuron(
    neuron: Neuron, population: str, stream: str, constant: str, factor: Tensor
) -> Learned:
    """Return a learned field of a named neuron; times are in milliseconds."""
    start = spread(neuron, len(factor), "neuron", stream).get(constant, getattr(neuron, constant))
    values = bounded(factor, start, *neuron.trainable[constant])
    unit = "ms" if constant.endswith("_ms") else ""
    mean, lowest, highest = (float(v) for v in (values.mean(), values.min(), values.max()))
    return Learned(population, constant, mean, lowest, highest, unit)


def _described(population: str, constant: str, values: Any, like: Any) -> Learned:
    b2 = import_brian2()
    dimensions = b2.get_dimensions(like)
    unit, text = 1.0, ""
    if not dimensions.is_dimensionless:
        best = b2.Quantity(values.mean(), dim=dimensions).get_best_unit()
        unit, text = float(best), str(best)
    mean, lowest, highest = values.mean() / unit, values.min() / unit, values.max() / unit
    return Learned(population, constant, float(mean), float(lowest), float(highest), text)
