"""An existing network that has been read, on its way to a circuit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.circuit.graph import INPUT, Block, Listened, Projection
from biograd.circuit.projections import Masked, OneToOne
from biograd.encoding import Encoding
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.neurons import Spiking
from biograd.recipes import PopulationRecipe, construct
from biograd.simulators.gathered import GatheringLinear
from biograd.substrate.network import initialise
from biograd.wrapping.ends import SPIKES, Columns, Ends, Pair, reading, taken
from biograd.wrapping.groups import Group, assigned, brief
from biograd.wrapping.synapses import Way
from biograd.wrapping.wrapped import Origins, WrappedCircuit

STIMULUS = "stimulus"
"""Name of the projection from the encoded data, and of nothing else."""
SETTINGS = ("scale", "output", "trainable", "surrogate_scale")
"""Keys of a population that an existing group can be given."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a circuit is read.

    Attributes:
        kind: of the readout, see ``wrap``.
        classes: outputs of a linear readout; None: there is none.
        time_constant_ms: of what filters.
    """

    kind: str | None
    classes: int | None
    time_constant_ms: float


@dataclasses.dataclass
class Wiring:
    """A network that has been read, on its way to a circuit."""

    groups: Mapping[str, Group]
    ways: Sequence[Way]
    ends: Ends
    encoding: Encoding
    settings: Mapping[str, Mapping[str, Any]]
    stimulus: str = "dense"

    def circuit(self, read: Reading, neuron: Spiking, seed: int) -> WrappedCircuit:
        """Return the circuit, its weights those of the synapses."""
        for name in self.settings:
            if name not in self.groups:
                raise RecipeError(f"wrap: populations.{name}: {nearest(name, self.groups)}")
        wiring, weights = self._wiring()
        order = self._order(wiring)
        self.cells = {name: self._layer(name, wiring, neuron) for name in order}
        parts: list[Block | Projection] = [self._block(name) for name in order]
        parts += [self._projection(one, weights.get(one.path)) for one in wiring]
        heard = self._heard()
        units = sum(self.cells[one.path.removeprefix("cells.")].units for one in heard)
        layers = reading(read.kind, units, read.classes, self.encoding, read.time_constant_ms)
        made = WrappedCircuit(parts, layers, self.encoding, heard)
        initialise(made, seed, 1.0, "readout")
        made.double()
        made.origins = Origins({f"projections.{path}": way for path, way in weights.items()})
        for one in wiring:
            layer = made.get_submodule(f"projections.{one.path}")
            weight = made.get_parameter(f"projections.{one.path}.weight").data
            if one.path in weights:
                scale = self.cells[one.target].model.scales[one.port]
                weight.copy_(torch.from_numpy(weights[one.path].weights) / scale)
            elif isinstance(layer, OneToOne):
                weight.fill_(1.0)
        return made

    def _block(self, name: str) -> Block:
        cells = self.cells[name]
        spiking = cells.model.outputs == (SPIKES,)
        ports = cells.model.ports
        return Block(f"cells.{name}", cells, name, inner="", ports=ports, spiking=spiking)

    def _projection(self, one: Projection, way: Way | None) -> Projection:
        """Return a projection between names as one between places, with its layer."""
        if way is None:
            layer = self._stimulus(one)
        elif way.mask.all():
            layer = GatheringLinear(way.mask.shape[1], way.mask.shape[0], bias=False)
        else:
            layer = Masked(torch.from_numpy(way.mask), bias=False)
        source, before = INPUT, None
        if one.source != INPUT:
            cells, source = self.cells[one.source], f"cells.{one.source}"
            before = Columns(0, cells.units) if cells.model.details.records else None
        path, target = f"projections.{one.path}", f"cells.{one.target}"
        return dataclasses.replace(
            one, path=path, source=source, target=target, layer=layer, before=before
        )

    def _stimulus(self, one: Projection) -> nn.Module:
        units, features = self.cells[one.target].units, self.encoding.units
        if self.stimulus == "dense":
            return GatheringLinear(features, units)
        if features != units:
            raise RecipeError(
                f"wrap: stimulus = {self.stimulus!r}: group {one.target!r} has {units} neurons, "
                f"the encoded data {features} units: take 'dense'"
            )
        layer = OneToOne(units)
        if self.stimulus == "direct":
            layer.requires_grad_(False)
        return layer

    def _heard(self) -> tuple[Listened, ...]:
        """Return what is read, in the order in which the user named it."""
        found: list[Listened] = []
        for group, variable in self.ends.outputs:
            cells = self.cells[group]
            outputs = cells.model.outputs
            variable = variable or outputs[0]
            first = outputs.index(variable) * cells.units
            part = None if len(outputs) == 1 else slice(first, first + cells.units)
            name = f"{group}.{variable}"
            if name in {one.name for one in found}:
                raise RecipeError(f"wrap: output: {name} is there twice")
            found.append(Listened(f"cells.{group}", name, part, variable == SPIKES))
        return tuple(found)

    def _wiring(self) -> tuple[list[Projection], dict[str, Way]]:
        """Return where everything leads, the stimulus first, and the synapses by projection."""
        into = [pair for pair in self.ends.inputs if pair[0] in self.groups]
        wiring = [self._entry(pair, len(into) > 1) for pair in into]
        entries, weights = {one.path for one in wiring}, dict[str, Way]()
        for way in self.ways:
            source, target = self._end(way.source.name, way), self._end(way.target.name, way)
            if source == INPUT and len(way.source) != self.encoding.units:
                raise RecipeError(
                    f"wrap: input = {self.ends.inputs[0]!r}: it has {len(way.source)} neurons, the "
                    f"encoded data {self.encoding.units} units"
                )
            name = self._name(way)
            if name in weights or name in entries or not name.isidentifier() or taken(name):
                raise RecipeError(f"wrap: synapses cannot be called {name!r}: give another name=")
            weights[name] = way
            wiring.append(Projection(name, source, target, None, way.variable, way.steps + 1))
        return sorted(wiring, key=lambda one: one.source != INPUT), weights

    def _entry(self, pair: Pair, several: bool) -> Projection:
        group, variable = pair
        name = f"{STIMULUS}_{group}_{variable}" if several else STIMULUS
        return Projection(name, INPUT, group, None, variable)

    def _end(self, name: str, way: Way) -> str:
        """Return the group at an end of synapses, or the data that replace it."""
        if name in self.groups:
            return name
        if name in {group for group, _ in self.ends.inputs}:
            return INPUT
        raise CapabilityError(
            f"synapses {way.name!r}: group {name!r} is not in the network: add it"
        )

    def _name(self, way: Way) -> str:
        """Return the name of a projection: that of the synapses, and what tells it from others."""
        same = [one for one in self.ways if one.name == way.name]
        variables, delays = {one.variable for one in same}, {one.steps for one in same}
        parts = [way.name] + [way.variable] * (len(variables) > 1)
        return "_".join([*parts, *[str(way.steps)] * (len(delays) > 1)])

    def _recipe(self, name: str) -> PopulationRecipe:
        """Return the recipe of a group with what the user says beside it."""
        settings = self.settings.get(name, {})
        for key in settings:
            if key not in SETTINGS:
                raise RecipeError(f"wrap: populations.{name}.{key}: {nearest(key, SETTINGS)}")
        given = construct(PopulationRecipe, settings, "wrap", f"populations.{name}")
        changes = {key: getattr(given, key) for key in settings}
        read = self.ends.read_of(name)
        if "output" not in settings and read and "" not in read and not self._spikes(name):
            changes["output"] = read[0]
        recipe = dataclasses.replace(self.groups[name].recipe, **changes)
        return dataclasses.replace(recipe, scale={**self._scales(name), **recipe.scale})

    def _spikes(self, name: str) -> bool:
        """Return whether a group's spikes are wanted."""
        return SPIKES in self.ends.read_of(name) or any(w.source.name == name for w in self.ways)

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
        wiring: Sequence[Projection],
        neuron: Spiking,
    ) -> Brian2Layer:
        group, where, recipe = self.groups[name], f"group {name!r}", self._recipe(name)
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
            dataclasses.replace(group.details, ports=ports, records=self._records(name, recipe)),
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

    def _records(self, name: str, recipe: PopulationRecipe) -> tuple[str, ...]:
        """Return what is read of a group beside what it passes on."""
        return tuple(v for v in self.ends.read_of(name) if v not in ("", recipe.output))

    def _check_settings(self, name: str, recipe: PopulationRecipe) -> None:
        """Refuse statements that would undo what the data do, and synapses without spikes."""
        set_by_data = {variable for group, variable in self.ends.inputs if group == name}
        for one in self.groups[name].details.regular:
            for variable in set_by_data & assigned(one.code):
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
