"""A population of a network in the terms of NIR."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biograd.brian.layer import Brian2Layer
from biograd.circuit.graph import Block
from biograd.errors import CapabilityError
from biograd.interchange.equations import of_equations
from biograd.interchange.nir_neuron import Array, NirNeuron
from biograd.simulators.population import Population
from biograd.substrate.normalisation import Dropout


def cell_of(one: Block) -> tuple[NirNeuron, dict[str, Any]]:
    """Return the neurons of a population, and what is noted of them.

    Raises:
        CapabilityError: NIR has no node for them; the message says what is in the way.
    """
    cells, name = one.cells, one.path.removeprefix("cells.")
    for part in (*one.before.values(), *one.after.values()):
        if not isinstance(part, Dropout):  # which acts in training alone
            raise CapabilityError(f"{name}: NIR has no node for a {type(part).__name__}")
    try:
        if isinstance(cells, Brian2Layer):
            cell, trains = of_equations(cells), cells.model.recipe.trainable
        elif isinstance(cells, Population):
            cell, trains = _named(cells), cells.neuron.trainable
        else:
            raise CapabilityError(f"NIR has no node for {type(cells).__name__}")
    except CapabilityError as error:
        text = str(error).removeprefix("population: ")
        raise CapabilityError(text if text.startswith("pop") else f"{name}: {text}") from error
    spike: Any = getattr(cells, "neuron", cells)
    notes = {key: getattr(spike, key) for key in ("surrogate", "slope") if cell.spiking}
    if trains:
        ends = [f"{key} [{low:g}, {high:g}]" for key, (low, high) in trains.items()]
        notes["learned"] = ", ".join(ends)
    return cell, notes | {key: part.p for key, part in one.after.items()}


def _named(cells: Population) -> NirNeuron:
    """Return the form that a neuron gives itself in NIR."""
    neuron = cells.neuron
    fields = {field.name: getattr(neuron, field.name) for field in dataclasses.fields(neuron)}
    values = {name: array(values).astype(float) for name, values in cells.values().items()}
    return NirNeuron(**neuron.nir(SimpleNamespace(**fields | values)))


def array(values: Tensor) -> Array:
    """Return a tensor as an array of its type."""
    with torch.no_grad():
        return np.array(values.detach().cpu().numpy())
