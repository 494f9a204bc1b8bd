"""Circuits from recipes: names, shapes and delays are checked, then the parts are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import nn

from biograd.encoding import Encoding
from biograd.errors import RecipeError, nearest
from biograd.networks.brian import Brian2Layer
from biograd.networks.circuit import INPUT, Circuit, Projection
from biograd.networks.grids import Convolution
from biograd.networks.neuron_model import Details, integrate_and_fire
from biograd.networks.projections import connect
from biograd.networks.readouts import Readout
from biograd.networks.spikes import Membrane
from biograd.recipes import ModelRecipe, PopulationRecipe, ProjectionRecipe

READOUT = "readout"
Shape = tuple[int, ...]
OWN_KEYS = {
    "density": ("masked", "sparse"),
    **dict.fromkeys(("channels", "kernel", "stride"), ("convolution",)),
}
"""Keys of a projection and the kinds that read them."""


def build_circuit(recipe: ModelRecipe, encoding: Encoding, classes: int) -> Circuit:
    """Return the circuit of a recipe.

    Raises:
        RecipeError: a name that is not there, shapes that do not fit, a delay between two steps,
            a population that receives nothing or leads nowhere.
    """
    order = list(recipe.populations)
    if not order:
        raise RecipeError("populations: missing: network.kind = 'circuit' needs one at least")
    for name, population in recipe.populations.items():
        _check_population(name, population)
    sorted_projections = _sorted(recipe.projections, order)
    _check_ways(recipe.projections, order)
    cells = {name: _population(recipe, name, encoding) for name in order}
    shapes = _shapes(recipe, sorted_projections, encoding)
    layers: dict[str, nn.Module] = {}
    wiring = []
    for name, one in sorted_projections:
        target = cells[one.target]
        layers[name] = connect(one, name, shapes[one.source], target.units)
        variable = _variable(recipe, one)
        back = one.source != INPUT and order.index(one.source) >= order.index(one.target)
        steps = _steps(one, name, encoding)
        if back or (one.source != INPUT and variable in target.model.impulses):
            steps += 1
        wiring.append(Projection(name, one.source, one.target, variable, steps))
    readout = nn.Linear(cells[order[-1]].units, classes)
    filtered = Readout.of(recipe.neuron, encoding.steps, encoding.dt_ms)
    return Circuit(cells, layers, wiring, encoding, readout, filtered)


def _check_population(name: str, population: PopulationRecipe) -> None:
    where = f"populations.{name}"
    taken = name in (INPUT, READOUT) or hasattr(nn.ModuleDict(), name)
    if taken or not name.isidentifier():
        raise RecipeError(f"{where}: {name!r} cannot be the name of a population: take another")
    if not population.units:
        raise RecipeError(f"{where}.units: missing: how many neurons?")


def _population(recipe: ModelRecipe, name: str, encoding: Encoding) -> Brian2Layer:
    """Return the neurons of a population; without equations those of ``[neuron]``."""
    given, neuron, constants = recipe.populations[name], recipe.neuron, None
    if not given.equations:
        made, constants = integrate_and_fire(Membrane.of(neuron, encoding.dt_ms))
        if dataclasses.replace(given, units=0) != PopulationRecipe():
            raise RecipeError(f"populations.{name}.equations: missing: the other keys need them")
        given = dataclasses.replace(made, units=given.units)
    into = [one for one in recipe.projections.values() if one.target == name]
    variables = dict.fromkeys(one.variable or given.input for one in into)
    ports = sorted(variables, key=lambda variable: variable != given.input)
    return Brian2Layer(
        given,
        given.units,
        encoding.steps,
        encoding.dt_ms,
        neuron.surrogate,
        neuron.slope,
        f"populations.{name}",
        constants,
        Details(ports=tuple(ports)),
    )


def _variable(recipe: ModelRecipe, one: ProjectionRecipe) -> str:
    """Return the variable of its target that a projection leads to."""
    return one.variable or recipe.populations[one.target].input


def _sorted(
    projections: Mapping[str, ProjectionRecipe], order: Sequence[str]
) -> list[tuple[str, ProjectionRecipe]]:
    """Return the projections by target, those from before it first, and check their names."""
    known = (INPUT, *order)
    for name, one in projections.items():
        where = f"projections.{name}"
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise RecipeError(f"{where}: {name!r} cannot be the name of a projection: take another")
        if one.source not in known:
            raise RecipeError(f"{where}.source = {one.source!r}: {nearest(one.source, known)}")
        if one.target not in order:
            raise RecipeError(f"{where}.target = {one.target!r}: {nearest(one.target, order)}")
        _check_kind(one, where)
    places = {name: place for place, name in enumerate(known)}

    def key(item: tuple[str, ProjectionRecipe]) -> tuple[int, bool, int]:
        source, target = places[item[1].source], places[item[1].target]
        return target, source >= target, source

    return sorted(projections.items(), key=key)


def _check_kind(one: ProjectionRecipe, where: str) -> None:
    """Refuse a key of another kind of projection."""
    for key, kinds in OWN_KEYS.items():
        if one.kind not in kinds and getattr(one, key) != getattr(ProjectionRecipe, key):
            raise RecipeError(
                f"{where}.{key}: has no effect on kind = {one.kind!r}: take it out, or write "
                f"kind = {' or '.join(map(repr, kinds))}"
            )


def _check_ways(projections: Mapping[str, ProjectionRecipe], order: Sequence[str]) -> None:
    """Refuse a population that the input does not reach, or that does not reach the readout."""
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for one in projections.values():
        forward.setdefault(one.source, set()).add(one.target)
        backward.setdefault(one.target, set()).add(one.source)
    reached, leading = _reached(forward, INPUT), _reached(backward, order[-1])
    for name in order:
        if name not in reached:
            raise RecipeError(f"populations.{name}: no projection leads to it from the input")
        if name not in leading:
            raise RecipeError(
                f"populations.{name}: no projection leads from it to {order[-1]!r}, the last "
                "population, to which the readout listens"
            )


def _reached(ways: Mapping[str, set[str]], start: str) -> set[str]:
    found, fresh = {start}, [start]
    while fresh:
        more = ways.get(fresh.pop(), set()) - found
        found |= more
        fresh += more
    return found


def _shapes(
    recipe: ModelRecipe, projections: Sequence[tuple[str, ProjectionRecipe]], encoding: Encoding
) -> dict[str, Shape]:
    """Return in which shape the units of the input and of each population lie."""
    shapes = {name: (one.units,) for name, one in recipe.populations.items()}
    grid = len(encoding.shape) == 3 and encoding.units == math.prod(encoding.shape)
    found: dict[str, Shape] = {INPUT: encoding.shape if grid else (encoding.units,), **shapes}
    for name, one in projections:
        if one.kind == "convolution" and len(found[one.source]) == 3:
            layer = connect(one, name, found[one.source], recipe.populations[one.target].units)
            assert isinstance(layer, Convolution)
            found[one.target] = layer.target_shape
    return found


def _steps(one: ProjectionRecipe, name: str, encoding: Encoding) -> int:
    """Return the delay of a projection in steps."""
    steps, where = one.delay_ms / encoding.dt_ms, f"projections.{name}.delay_ms = {one.delay_ms:g}"
    if abs(steps - round(steps)) > 1e-9 * max(1, steps):
        raise RecipeError(f"{where}: no multiple of encoding.dt_ms = {encoding.dt_ms:g}")
    if steps >= encoding.steps:
        raise RecipeError(f"{where}: nothing would arrive in a trial of {encoding.duration_ms:g}")
    return round(steps)
