"""Existing Brian2 networks as circuits: their neurons as they are, their synapses as weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from biograd import encoding as encodings
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.brian.neuron_checks import check_no_constants
from biograd.circuit.circuit import Circuit
from biograd.circuit.graph import INPUT, Block, Projection
from biograd.circuit.projections import Masked
from biograd.circuit.readouts import Readout
from biograd.encoding import Encoding
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.neurons import Leaky, Spiking
from biograd.recipes import (
    Count,
    EncodingRecipe,
    PopulationRecipe,
    construct,
    validate,
)
from biograd.substrate.network import initialise
from biograd.wrapping.groups import Group, assigned, brief, read_group
from biograd.wrapping.scheduling import check_active, check_schedule
from biograd.wrapping.synapses import Way, read_synapses

STIMULUS = "stimulus"
"""Name of the projection from the encoded data, and of nothing else."""
SPIKES = "spikes"
SETTINGS = ("scale", "output", "trainable", "surrogate_scale")
"""Keys of a population that an existing group can be given."""


def wrap(
    network: Any,
    input: tuple[str, str],
    output: str,
    *,
    inputs: Count | Sequence[Count],
    classes: Count,
    encoding: EncodingRecipe | Encoding | None = None,
    neuron: Spiking | None = None,
    readout: str = "membrane",
    readout_time_constant_ms: float = 20.0,
    populations: Mapping[str, Mapping[str, Any]] | None = None,
    namespace: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Circuit:
    """Return a ``brian2.Network`` as a circuit that any rule can train; it stays as it is.

    Every ``NeuronGroup`` becomes a population with its equations, constants and values of now; a
    trial starts at time zero, nobody refractory and no spike under way.  Every ``Synapses`` with
    ``X_post += w`` becomes a projection whose weights start at the synapses' and which has their
    connections and delays.  The data come in through a dense layer, and go out through a readout;
    both are drawn from ``seed``.  All is in float64, as in Brian2, and spikes at the same steps.

    Weights are in units of ``scale``, a power of two for synapses: ``circuit.layer(group).model
    .scales[variable]`` times the weight is what a spike adds, in SI units.

    Args:
        network: groups, synapses, and monitors, which are left out.
        input: group and variable that receive the data: a parameter is set in every step, a
            variable with a differential equation is increased.  Or a ``PoissonGroup`` or
            ``SpikeGeneratorGroup`` and "spikes", which the encoded data replace.
        output: group to which the readout listens.
        inputs: number of features of a datum, or its shape.
        classes: number of outputs.
        encoding: of the data; its steps are the network's.
        neuron: of it, the surrogate at thresholds.
        readout: what is read of the output group (see ``biograd.Readout``).
        readout_time_constant_ms: of the leaky integrator or the filter that reads.
        populations: by group, what its equations do not say: ``scale``, ``output``, ``trainable``,
            ``surrogate_scale`` (see ``PopulationRecipe``).
        namespace: constants beside those of the groups, as ``Network.run`` takes them.
        seed: of the weights that are drawn.

    Raises:
        CapabilityError: the network has something else, or what cannot be wrapped.
        RecipeError: a name that is not there, or a unit that is missing.
    """
    if not isinstance(network, import_brian2().Network):
        raise RecipeError(f"wrap: {type(network).__name__} is no brian2.Network")
    validate(wrap, {"output": output, "inputs": inputs, "classes": classes, "seed": seed})
    _check_kinds(encoding, neuron, populations, namespace)
    with _way_out():
        groups, synapses, sources = _parts(network)
        _check_ends(input, output, groups, sources)
        made = _encoding(encoding, inputs, groups)
        dt, known = made.dt_ms / 1000, dict(namespace or {})
        found = {name: read_group(group, dt, known) for name, group in groups.items()}
        ways = [way for one in synapses for way in read_synapses(one, dt, known)]
        plan = _Plan(found, ways, input, output, made)
        filtered = Readout(readout, made.steps, made.dt_ms, readout_time_constant_ms)
        return plan.circuit(classes, neuron or Leaky(), filtered, dict(populations or {}), seed)


@contextmanager
def _way_out() -> Iterator[None]:
    """Let every refusal end with what takes any network as it is."""
    try:
        yield
    except RecipeError as error:
        raise type(error)(f"{error}; or take it whole: biograd.Brian2Box") from error


def _parts(network: Any) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """Return the groups of neurons, the synapses, and the groups that only spike."""
    b2 = import_brian2()
    check_schedule(network)
    groups, synapses, sources = {}, [], {}
    monitors = (b2.SpikeMonitor, b2.EventMonitor, b2.StateMonitor, b2.PopulationRateMonitor)
    for part in sorted(network.objects, key=lambda part: str(part.name)):  # Brian2 has a set
        if isinstance(part, b2.NeuronGroup) and not isinstance(part, b2.SpatialNeuron):
            groups[part.name] = part
        elif isinstance(part, (b2.PoissonGroup, b2.SpikeGeneratorGroup)):
            check_active(part, f"wrap: {part.name} ({type(part).__name__})")
            sources[part.name] = part
        elif not part.active:
            continue
        elif isinstance(part, b2.Synapses):
            synapses.append(part)
        elif not isinstance(part, monitors):
            raise CapabilityError(
                f"wrap: {part.name} ({type(part).__name__}) cannot be wrapped: take it out of the "
                "network"
            )
    return groups, synapses, sources


def _check_kinds(encoding: Any, neuron: Any, populations: Any, namespace: Any) -> None:
    table, settings = "a dict", populations if isinstance(populations, Mapping) else {}
    for name, given, kinds, asked in (
        ("encoding", encoding, (EncodingRecipe, Encoding), "an EncodingRecipe"),
        ("neuron", neuron, (Spiking,), "a spiking neuron, as biograd.neurons.Leaky"),
        ("populations", populations, (Mapping,), table),
        *((f"populations.{key}", value, (Mapping,), table) for key, value in settings.items()),
        ("namespace", namespace, (Mapping,), table),
    ):
        if given is not None and not isinstance(given, kinds):
            raise RecipeError(f"wrap: {name} = {given!r}: must be {asked}")
    if neuron is not None:
        check_no_constants(neuron, "the groups")


def _check_ends(
    input: tuple[str, str], output: str, groups: Mapping[str, Any], sources: Mapping[str, Any]
) -> None:
    texts = isinstance(input, tuple) and all(isinstance(part, str) for part in input)
    if not texts or len(input) != 2:
        raise RecipeError(f"wrap: input = {input!r}: write (group, variable)")
    name, variable = input
    if output not in groups:
        raise RecipeError(f"wrap: output = {output!r}: {nearest(output, groups)}")
    if name not in groups and name not in sources:
        raise RecipeError(f"wrap: input = {input!r}: {nearest(name, [*groups, *sources])}")
    if name in sources and variable != SPIKES:
        raise RecipeError(f"wrap: input = {input!r}: the data replace its {SPIKES!r}")
    for other in sources:
        if other != name:
            raise CapabilityError(
                f"wrap: {other} ({type(sources[other]).__name__}) cannot be wrapped unless the "
                f"data replace it, input = ({other!r}, {SPIKES!r}): take it out of the network"
            )
    for name in groups:
        if name in (INPUT, "readout") or not name.isidentifier() or _taken(name):
            raise RecipeError(f"wrap: a group cannot be called {name!r}: give it another name=")


def _encoding(
    given: EncodingRecipe | Encoding | None, inputs: int | Sequence[int], groups: Mapping[str, Any]
) -> Encoding:
    if isinstance(given, Encoding):
        return given
    shape = tuple(inputs) if isinstance(inputs, Sequence) else (int(inputs),)
    if given is None:
        step = 1000 * float(next(iter(groups.values())).clock.dt_)
        given = EncodingRecipe(dt_ms=round(step, 12))
    return encodings.build(given, shape)


@dataclasses.dataclass
class _Plan:
    """A network that has been read, on its way to a circuit."""

    groups: Mapping[str, Group]
    ways: Sequence[Way]
    input: tuple[str, str]
    output: str
    encoding: Encoding

    def circuit(
        self,
        outputs: int,
        neuron: Spiking,
        filtered: Readout,
        settings: Mapping[str, Mapping[str, Any]],
        seed: int,
    ) -> Circuit:
        """Return the circuit, its weights those of the synapses."""
        wiring, weights = self._wiring()
        recipes = {name: self._recipe(name, settings.get(name, {})) for name in self.groups}
        for name in settings:
            if name not in self.groups:
                raise RecipeError(f"wrap: populations.{name}: {nearest(name, self.groups)}")
        order = self._order(wiring)
        cells = {name: self._layer(name, recipes[name], wiring, neuron) for name in order}
        parts: list[Block | Projection] = [
            Block(
                f"cells.{name}",
                cells[name],
                name,
                inner="",
                ports=cells[name].model.ports,
                spiking=recipes[name].output == SPIKES,
            )
            for name in order
        ]
        for one in wiring:
            way, units = weights.get(one.path), cells[one.target].units
            layer = nn.Linear(self.encoding.units, units) if way is None else _layer_of(way)
            parts.append(_placed(one, layer))
        readout, out = nn.Linear(cells[self.output].units, outputs), f"cells.{self.output}"
        made = Circuit(parts, readout, self.encoding, filtered, output=out, simulator="brian2")
        initialise(made, seed, 1.0, "readout")
        made.double()
        with torch.no_grad():
            for one in wiring:
                if one.path in weights:
                    scale = cells[one.target].model.scales[one.port]
                    values = torch.from_numpy(weights[one.path].weights) / scale
                    made.get_parameter(f"projections.{one.path}.weight").copy_(values)
        return made

    def _wiring(self) -> tuple[list[Projection], dict[str, Way]]:
        """Return where everything leads, the stimulus first, and the synapses by projection."""
        group, variable = self.input
        replaced = group not in self.groups
        wiring = [] if replaced else [Projection(STIMULUS, INPUT, group, None, variable)]
        weights: dict[str, Way] = {}
        for way in self.ways:
            source, target = way.source.name, way.target.name
            source = INPUT if replaced and source == group else source
            for name in (source, target):
                if name != INPUT and name not in self.groups:
                    raise CapabilityError(
                        f"synapses {way.name!r}: group {name!r} is not in the network: add it"
                    )
            if source == INPUT and len(way.source) != self.encoding.units:
                raise RecipeError(
                    f"wrap: input = {self.input!r}: it has {len(way.source)} neurons, the encoded "
                    f"data {self.encoding.units} units"
                )
            name = self._name(way)
            if name in weights or name == STIMULUS or not name.isidentifier() or _taken(name):
                raise RecipeError(f"wrap: synapses cannot be called {name!r}: give another name=")
            weights[name] = way
            wiring.append(Projection(name, source, target, None, way.variable, way.steps + 1))
        return sorted(wiring, key=lambda one: one.source != INPUT), weights

    def _name(self, way: Way) -> str:
        """Return the name of a projection: that of the synapses, and what tells it from others."""
        same = [one for one in self.ways if one.name == way.name]
        variables, delays = {one.variable for one in same}, {one.steps for one in same}
        parts = [way.name] + [way.variable] * (len(variables) > 1)
        return "_".join([*parts, *[str(way.steps)] * (len(delays) > 1)])

    def _recipe(self, name: str, settings: Mapping[str, Any]) -> PopulationRecipe:
        """Return the recipe of a group with what the user says beside it."""
        for key in settings:
            if key not in SETTINGS:
                raise RecipeError(f"wrap: populations.{name}.{key}: {nearest(key, SETTINGS)}")
        given = construct(PopulationRecipe, settings, "wrap", f"populations.{name}")
        changes = {key: getattr(given, key) for key in settings}
        recipe = dataclasses.replace(self.groups[name].recipe, **changes)
        return dataclasses.replace(recipe, scale={**self._scales(name), **recipe.scale})

    def _scales(self, name: str) -> dict[str, float]:
        """Return units for what synapses add: weights of ``1 / sqrt(fan-in)``, a power of two."""
        found = {}
        for variable in {way.variable for way in self.ways if way.target.name == name}:
            ways = [w for w in self.ways if (w.target.name, w.variable) == (name, variable)]
            squares = sum(float(np.square(way.weights).sum()) for way in ways)
            # rms sqrt(fan-in), with the mean fan-in of all neurons of the group
            size = np.sqrt(squares / len(ways[0].target))
            if size > 0:
                found[variable] = float(2.0 ** np.rint(np.log2(size)))
        return found

    def _layer(
        self,
        name: str,
        recipe: PopulationRecipe,
        wiring: Sequence[Projection],
        neuron: Spiking,
    ) -> Brian2Layer:
        group, where = self.groups[name], f"group {name!r}"
        ports = tuple(dict.fromkeys(one.port for one in wiring if one.target == name))
        if not ports:
            raise CapabilityError(
                f"{where}: no synapses lead to it: take it out of the network, or make it the input"
            )
        self._check_settings(name, recipe)
        layer = Brian2Layer(
            dataclasses.replace(recipe, input=ports[0]),
            group.units,
            self.encoding.steps,
            self.encoding.dt_ms,
            neuron.surrogate,
            neuron.slope,
            where,
            group.constants,
            dataclasses.replace(group.details, ports=ports),
        )
        for port in ports:
            plain = layer.model.equations[port].dim.is_dimensionless
            if port not in recipe.scale and not plain:
                unit = import_brian2().get_unit(layer.model.equations[port].dim)
                raise RecipeError(
                    f"wrap: {where}: what is a current of 1 at {port!r}? Give populations="
                    f"{{{name!r}: {{'scale': {{{port!r}: '1*{unit!r}'}}}}}} with a quantity"
                )
        return layer

    def _check_settings(self, name: str, recipe: PopulationRecipe) -> None:
        """Refuse statements that would undo what the data do, and synapses without spikes."""
        group, variable = self.input
        for one in self.groups[name].details.regular if name == group else ():
            if variable in assigned(one.code):
                raise CapabilityError(
                    f"group {name!r}: run_regularly {brief(one.code)!r} sets {variable!r}, which "
                    "the data set: remove it"
                )
        if recipe.output != SPIKES and any(way.source.name == name for way in self.ways):
            raise RecipeError(
                f"wrap: populations.{name}.output = {recipe.output!r}: its synapses need spikes"
            )

    def _order(self, wiring: Sequence[Projection]) -> list[str]:
        """Return the groups so that none leads back; in a loop, from the data on."""
        left, order = sorted(self.groups, key=_distances(self.groups, wiring).__getitem__), []
        while left:
            into = {
                name: {one.source for one in wiring if one.target == name} & set(left) - {name}
                for name in left
            }
            order.append(next((name for name in left if not into[name]), left[0]))
            left.remove(order[-1])
        return order


def _distances(groups: Iterable[str], wiring: Sequence[Projection]) -> dict[str, tuple[float, str]]:
    """Return for each group how many projections away the data are, and its name."""
    found, fresh = {INPUT: 0}, [INPUT]
    while fresh:
        source = fresh.pop(0)
        for one in wiring:
            if one.source == source and one.target not in found:
                found[one.target] = found[source] + 1
                fresh.append(one.target)
    return {name: (found.get(name, math.inf), name) for name in groups}


def _placed(one: Projection, layer: nn.Module) -> Projection:
    """Return a projection between names as one between places."""
    source = INPUT if one.source == INPUT else f"cells.{one.source}"
    path, target = f"projections.{one.path}", f"cells.{one.target}"
    return dataclasses.replace(one, path=path, source=source, target=target, layer=layer)


def _taken(name: str) -> bool:
    """Return whether torch has a use of its own for a name."""
    return hasattr(nn.ModuleDict(), name)


def _layer_of(way: Way) -> nn.Module:
    """Return the layer of synapses; dense if every connection exists."""
    if way.mask.all():
        return nn.Linear(way.mask.shape[1], way.mask.shape[0], bias=False)
    return Masked(torch.from_numpy(way.mask), bias=False)
