"""What simulates a cell: the neurons of a recipe where they are those, else Brian2 equations."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from biograd.brian.layer import Brian2Layer, leaky_integrate_and_fire
from biograd.brian.neuron_model import Details, integrate_and_fire
from biograd.interchange.cells import Array, Cell, common, decay, decays, milliseconds
from biograd.interchange.equations import FILTERED, of_equations, of_membrane
from biograd.networks.spikes import Membrane
from biograd.networks.spiking import LeakyPopulation, Population, SnnTorchPopulation
from biograd.recipes import NeuronRecipe, PopulationRecipe

UNITS = {"tau": "second", "tau_syn": "second"}
"""Of the constants that are no plain numbers."""
NAMES = {"threshold": "v_threshold", "taken": "v_taken"}
"""What constants are called in equations, where it is not their own name."""


def cell_of(population: nn.Module, units: int, dt_ms: float) -> Cell:
    """Return the cell of a population of a network.

    Raises:
        CapabilityError: NIR has no node for it; the message says what is in the way.
    """
    if isinstance(population, Brian2Layer):
        return of_equations(population)
    assert isinstance(population, LeakyPopulation)
    return of_membrane(population.membrane, units, dt_ms)


def membrane_of(cell: Cell, dt_ms: float, neuron: NeuronRecipe) -> Membrane | None:
    """Return the constants of the neurons of a recipe, if a cell is one of those, else None.

    They are the same for all neurons, leak to 0, and a spike resets to 0 or takes the threshold.
    The resistance holds the factor on the input, too.

    Args:
        neuron: of it, the surrogate and its slope.
    """
    shared = {name: common(value) for name, value in cell.values().items()}
    if None in shared.values() or cell.threshold is None or cell.tau is None:
        return None
    known = {name: value for name, value in shared.items() if value is not None}
    subtracts, zero = cell.takes_threshold(), cell.taken is None and known.get("v_reset") == 0
    if known["v_leak"] or known["threshold"] <= 0 or not (zero or subtracts):
        return None
    if known["r"] * known.get("w_in", 1.0) <= 0:
        return None
    return Membrane(
        beta=decay(known["tau"], dt_ms),
        alpha=decay(known["tau_syn"], dt_ms) if cell.tau_syn is not None else 0.0,
        resistance=known["r"] * known.get("w_in", 1.0),
        threshold=known["threshold"],
        reset="zero" if zero else "subtract",
        surrogate=neuron.surrogate,
        slope=neuron.slope,
    )


def neuron_of(cell: Cell, membrane: Membrane, neuron: NeuronRecipe) -> dict[str, Any]:
    """Return the keys of ``[neuron]`` for a cell that is one."""
    assert cell.tau is not None
    synaptic = 0.0 if cell.tau_syn is None else milliseconds(float(cell.tau_syn[0]))
    return {
        "time_constant_ms": milliseconds(float(cell.tau[0])),
        "synaptic_time_constant_ms": synaptic,
        "resistance": membrane.resistance,
        "threshold": membrane.threshold,
        "reset": membrane.reset,
        "surrogate": neuron.surrogate,
        "slope": neuron.slope,
    }


def stepped(
    membrane: Membrane, substrate: str, units: int, steps: int, dt_ms: float, recurrent: bool
) -> nn.Module:
    """Return the neurons of a recipe on a substrate."""
    if substrate == "brian2":
        return leaky_integrate_and_fire(membrane, units, steps, dt_ms, "population")
    if substrate == "snntorch":
        return SnnTorchPopulation(membrane, steps, units if recurrent else None)
    return Population(membrane, steps)


def simulated(cell: Cell, name: str, steps: int, dt_ms: float, neuron: NeuronRecipe) -> Brian2Layer:
    """Return a cell as Brian2 simulates it.

    Args:
        name: of the population, for messages.
        neuron: of it, the surrogate and its slope.
    """
    membrane, where = membrane_of(cell, dt_ms, neuron), f"populations.{name}"
    if membrane is not None:
        recipe, constants = integrate_and_fire(membrane)
        details = None
    else:
        recipe, details = written(cell, dt_ms)
        constants = None
    surrogate, slope = neuron.surrogate, neuron.slope
    return Brian2Layer(
        recipe, cell.units, steps, dt_ms, surrogate, slope, where, constants, details
    )


def written(cell: Cell, dt_ms: float) -> tuple[PopulationRecipe, Details]:
    """Return the Brian2 equations of a cell; what differs between neurons is a variable of theirs.

    What a spike takes one step later is taken at once, before it decays, as Brian2 does.
    """
    constants = {NAMES.get(name, name): value for name, value in cell.values().items()}
    if cell.taken is not None and cell.tau is not None:
        constants["v_taken"] = cell.taken / decays(cell.tau, dt_ms)
    lines, update, method = _equations(cell)
    namespace: dict[str, str | float] = {}
    initial: dict[str, Array] = {}
    for name, values in constants.items():
        unit, value = UNITS.get(name, "1"), common(values)
        if value is None:
            lines.append(f"{name} : {unit} (constant)")
            initial[name] = values
        else:
            namespace[name] = value if unit == "1" else f"{value!r}*{unit}"
    if cell.v_leak is not None and cell.v_leak.any():
        initial["v"] = cell.v_leak
    spiking = cell.threshold is not None
    reset = "" if cell.v_reset is None else "v = v_reset"
    recipe = PopulationRecipe(
        equations="\n".join(lines),
        threshold="v > v_threshold" if spiking else "",
        reset=reset if cell.taken is None else "v -= v_taken",
        method=method,
        update=update,
        output="spikes" if spiking else "v",
        namespace=namespace,
    )
    return recipe, Details(initial={name: np.asarray(values) for name, values in initial.items()})


def _equations(cell: Cell) -> tuple[list[str], str, str]:
    """Return the lines of the equations, what runs in every step, and the method."""
    if cell.tau_syn is not None:
        return ["v : 1", "g : 1", "I : 1"], FILTERED, ""
    if cell.tau is None:
        return ["dv/dt = r * I / second : 1", "I : 1"], "", "euler"
    return ["dv/dt = (v_leak - v + r * I) / tau : 1", "I : 1"], "", "exact"
