"""Circuits from recipes: names, shapes and delays are checked, then the graph is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import nn

from biograd.circuit.circuit import Circuit
from biograd.circuit.delays import delayed
from biograd.circuit.graph import INPUT, SKIP, Block, Projection, reached
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.populations import make_population, normalised, reading
from biograd.circuit.projections import connect
from biograd.encoding import Encoding
from biograd.errors import RecipeError, nearest
from biograd.neurons import Neuron
from biograd.recipes import ModelRecipe, PopulationRecipe, ProjectionRecipe
from biograd.substrate.normalisation import Dropout

READOUT = "readout"
Shape = tuple[int, ...]


def build_circuit(
    recipe: ModelRecipe, encoding: Encoding, outputs: int, timed: bool = False
) -> Circuit:
    """Return the circuit of a recipe.

    Args:
        timed: whether there is an output in every step.

    Raises:
        RecipeError: a name that is not there, shapes that do not fit, a delay between two steps,
            a population that receives nothing or leads nowhere.
    """
    order = list(recipe.populations)
    if not order:
        raise RecipeError("populations: missing: network.kind = 'circuit' needs one at least")
    for name, population in recipe.populations.items():
        _check_population(name, population)
    projections = _sorted(recipe.projections, order)
    _check_ways(recipe.projections, order)
    blocks = {name: _block(recipe, name, encoding) for name in order}
    shapes = _shapes(recipe, projections, encoding)
    parts: list[Block | Projection] = list(_normalised(recipe, blocks, shapes, encoding).values())
    for name, one in projections:
        parts.append(_projection(recipe, name, one, blocks, shapes, encoding))
    units = recipe.populations[order[-1]].units
    readout, filtered, behind = reading(recipe, encoding, timed, units, outputs)
    substrate = recipe.network.substrate
    return Circuit(parts, readout, encoding, filtered, behind, simulator=substrate)


def _projection(
    recipe: ModelRecipe,
    name: str,
    one: ProjectionRecipe,
    blocks: Mapping[str, Block],
    shapes: Mapping[str, Shape],
    encoding: Encoding,
) -> Projection:
    """Return a projection with its layer and lag."""
    order, block = list(blocks), blocks[one.target]
    port, steps = _port(one, name, block), _steps(one, name, encoding)
    back = one.source != INPUT and order.index(one.source) >= order.index(one.target)
    impulses = getattr(getattr(block.cells, "model", None), "impulses", ())
    if back or (one.source != INPUT and port in impulses):
        steps += 1
    source = INPUT if one.source == INPUT else f"cells.{one.source}"
    before, shape = _pooled(one, name, shapes[one.source])
    units = recipe.populations[one.target].units
    layer = None if one.kind == "skip" else connect(one, name, shape, units)
    if layer is not None:
        layer = delayed(layer, one.delays, encoding, steps, f"projections.{name}.delays")
    if one.kind == "skip" and (math.prod(shape) != units or back):
        raise RecipeError(
            f"projections.{name}.kind = 'skip': leads forward, from as many units to as many"
        )
    path, target = f"projections.{name}", f"cells.{one.target}"
    return Projection(path, source, target, layer, port, steps, before)


def _pooled(one: ProjectionRecipe, name: str, shape: Shape) -> tuple[nn.Module | None, Shape]:
    """Return what reduces the source's grid, and the shape behind it."""
    where = f"projections.{name}"
    if one.pooling == 1:
        return None, shape
    if len(shape) != 3:
        raise RecipeError(
            f"{where}.pooling: the units of {one.source!r} lie in no grid (channels, height, width)"
        )
    pool = Pooling(shape, one.pooling, kind=one.pool)
    return pool, pool.target_shape


def _port(one: ProjectionRecipe, name: str, block: Block) -> str:
    """Return the port of its target that a projection leads to."""
    if one.kind == "skip":
        return SKIP
    if one.variable and one.variable not in block.ports:
        hint = nearest(one.variable, block.ports)
        raise RecipeError(f"projections.{name}.variable = {one.variable!r}: {hint}")
    return one.variable or block.ports[0]


def _block(recipe: ModelRecipe, name: str, encoding: Encoding) -> Block:
    """Return a population of a circuit."""
    given, where = recipe.populations[name], f"populations.{name}"
    into = [one for one in recipe.projections.values() if one.target == name]
    neuron: Neuron = given.neuron or recipe.neuron
    ports = neuron.ports
    if given.equations:
        into = [one for one in into if one.kind != "skip"]
        variables = dict.fromkeys(one.variable or given.input for one in into)
        ports = tuple(sorted(variables, key=lambda variable: variable != given.input))
    cells, spiking = make_population(
        neuron,
        given,
        given.units,
        encoding,
        recipe.network.substrate,
        where,
        where if given.equations else f"{where}.neuron" if given.neuron else "neuron",
        own=recipe.neuron,
        ports=ports if given.equations else (),
    )
    after = {"dropout": Dropout(given.dropout)} if given.dropout else {}
    skips = any(one.kind == "skip" for one in recipe.projections.values() if one.target == name)
    whole = bool(skips or after or given.normalisation != "none")
    inner = ".activity" if whole else ""
    return Block(
        f"cells.{name}",
        cells,
        name,
        after=after,
        inner=inner,
        ports=ports,
        whole=bool(skips or after),
        spiking=spiking,
    )


def _normalised(
    recipe: ModelRecipe,
    blocks: Mapping[str, Block],
    shapes: Mapping[str, Shape],
    encoding: Encoding,
) -> dict[str, Block]:
    """Return the populations with the normalisation of their currents, which knows their grid."""
    found = {}
    for name, block in blocks.items():
        given = recipe.populations[name]
        if given.normalisation != "none":
            neuron, shape = given.neuron or recipe.neuron, shapes[name]
            layer = normalised(given.normalisation, shape, neuron, encoding.steps)
            block = dataclasses.replace(block, before={"normalise": layer})
        found[name] = block
    return found


def _check_population(name: str, population: PopulationRecipe) -> None:
    where = f"populations.{name}"
    taken = name in (INPUT, READOUT) or hasattr(nn.ModuleDict(), name)
    if taken or not name.isidentifier():
        raise RecipeError(f"{where}: {name!r} cannot be the name of a population: take another")
    if not population.units:
        raise RecipeError(f"{where}.units: missing: how many neurons?")


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
    places = {name: place for place, name in enumerate(known)}

    def key(item: tuple[str, ProjectionRecipe]) -> tuple[int, bool, int]:
        source, target = places[item[1].source], places[item[1].target]
        return target, source >= target, source

    return sorted(projections.items(), key=key)


def _check_ways(projections: Mapping[str, ProjectionRecipe], order: Sequence[str]) -> None:
    """Refuse a population that the input does not reach, or that does not reach the readout."""
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for one in projections.values():
        forward.setdefault(one.source, set()).add(one.target)
        backward.setdefault(one.target, set()).add(one.source)
    found = reached(forward, INPUT)
    leading = {order[-1], *reached(backward, order[-1])}
    for name in order:
        if name not in found:
            raise RecipeError(f"populations.{name}: no projection leads to it from the input")
        if name not in leading:
            raise RecipeError(
                f"populations.{name}: no projection leads from it to {order[-1]!r}, the last "
                "population, to which the readout listens"
            )


def _shapes(
    recipe: ModelRecipe, projections: Sequence[tuple[str, ProjectionRecipe]], encoding: Encoding
) -> dict[str, Shape]:
    """Return in which shape the units of the input and of each population lie."""
    shapes = {name: (one.units,) for name, one in recipe.populations.items()}
    grid = len(encoding.shape) == 3 and encoding.units == math.prod(encoding.shape)
    found: dict[str, Shape] = {INPUT: encoding.shape if grid else (encoding.units,), **shapes}
    for name, one in projections:
        _, source = _pooled(one, name, found[one.source])
        if one.kind == "convolution" and len(source) == 3:
            layer = connect(one, name, source, recipe.populations[one.target].units)
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
