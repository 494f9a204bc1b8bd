"""A Brian2 population as a torch module: simulated by Brian2, differentiated by replay.

All rows (copies x examples) are neurons of one ``NeuronGroup``.  Forward, Brian2 alone computes.
Where a derivative is asked for, the step that Brian2 compiled is translated (``transpile``) and
evaluated on the recorded course (``replay``), with a surrogate derivative at the threshold.  If it
cannot be translated, the population is ``forward_only``: whoever needs a derivative is refused,
and the rules that do without work as ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biograd.brian.described import described
from biograd.brian.neuron_model import Details, NeuronModel
from biograd.brian.simulation import (
    Simulation,
    Simulations,
    admitted,
    array,
    arrays,
    check_shapes,
    in_time,
    in_units,
)
from biograd.contracts.credit_paths import (
    differentiated,
    join,
    needed,
    with_way,
    without_derivative,
)
from biograd.contracts.trial_part import State
from biograd.errors import CapabilityError, RecipeError, brief
from biograd.neurons.stepped import SteppedPopulation
from biograd.neurons.surrogate import SURROGATES, Derivative, spike
from biograd.neurons.values import start, value
from biograd.process.threads import Turn
from biograd.randomness import generator
from biograd.ranks import parallel
from biograd.recipes import Count, PopulationRecipe, Positive, validate
from biograd.substrate.copies import SharedRandomness
from biograd.translation.linearisation import Record
from biograd.translation.replay import replay
from biograd.translation.transpile import translate

Array = NDArray[np.float64]


class Brian2Layer(SteppedPopulation):
    """A population given by Brian2 equations, as a layer of a torch network.

    A current ``[rows, units]``, the same in every step, or ``[rows, steps, units]`` becomes spikes,
    or the course of the recipe's output variable, ``[rows, steps, units]``; behind them stand the
    courses of ``details.records``, as ``[rows, steps, outputs units]``.  Variables are seen behind
    the threshold and before the reset, as by a ``StateMonitor`` in the slot "after_thresholds".  A
    population with several input variables takes a current for each, by name.

    In derivatives the spike has a surrogate, and a reset ``x = x + s (reset - x)`` of a variable
    gives credit to the spike s that made it: ``theta += jump`` tells what a spike costs later ones.
    Only the reset of a potential is held constant, as is usual (Neftci, Mostafa & Zenke 2019): of
    the states that stand in the threshold and raise the distance to it, v in ``v > 1 + theta``; if
    none does, of all that stand there.

    Args:
        recipe: the population; its equations have a variable that receives the current.
        units: number of neurons.
        steps: number of time steps of a trial.
        dt_ms: length of a step in milliseconds.
        surrogate: name of the derivative at the threshold, of steepness ``slope``.
        where: what the population is called in messages.
        constants: of the namespace, as they are, beside those of the recipe.
        details: what else there is beside the recipe.

    Attributes:
        forward_only: why no derivative can be had; "": it can.
        factors: what is learned of each constant in ``recipe.trainable``, ``[units]``: its value is
            ``initial low (high / low)**sigmoid(factor)``, so that it stays within its bounds.

    Raises:
        RecipeError: the equations do not hold together.

    >>> layer = Brian2Layer(
    ...     PopulationRecipe(
    ...         equations="dv/dt = (I - v) / (10*ms) : 1; I : 1".replace("; ", chr(10)),
    ...         threshold="v > 1", reset="v = 0", method="exact",
    ...     ),
    ...     units=2, steps=30, dt_ms=1.0,
    ... )
    >>> layer(torch.tensor([[0.5, 2.0]])).sum(1)
    tensor([[0., 4.]])
    """

    draws_noise = True
    shared: SharedRandomness | None = None

    def __init__(
        self,
        recipe: PopulationRecipe,
        units: Count,
        steps: Count,
        dt_ms: Positive,
        surrogate: str = "fast_sigmoid",
        slope: Positive = 10.0,
        where: str = "population",
        constants: Mapping[str, Any] | None = None,
        details: Details | None = None,
    ) -> None:
        validate(
            Brian2Layer,
            {"units": units, "steps": steps, "dt_ms": float(dt_ms), "surrogate": surrogate}
            | {"slope": float(slope)},
        )
        SURROGATES.find(surrogate, "Brian2Layer: surrogate")
        super().__init__(steps)
        if recipe.units not in (0, units):
            raise RecipeError(f"{where}.units = {recipe.units}: the layer has {units} neurons")
        self.model = NeuronModel(recipe, dt_ms, where, constants, details)
        self.model.initial(units)  # another number of values is refused here, not in the first pass
        self.units, self.surrogate, self.slope = units, surrogate, slope
        self.factors = nn.ParameterDict(
            {
                name: torch.full((units,), start(low, high))
                for name, (_, low, high) in self.model.trainable.items()
            }
        )
        self.simulation = Simulations(self.model, units)
        self._turn = Turn()
        self.forward_only = ""
        self.variables = 1
        try:
            self.step = translate(self.model.sample, self.model.ports)
            self.variables += len(self.step.states)
        except CapabilityError as error:
            name = f"population {self.model.sample.name}"
            self.forward_only = str(error).replace(name, where)

    @property
    def port(self) -> str:
        """The variable that receives a current without a name."""
        return self.model.port

    @property
    def width(self) -> int:
        """The number of values that are passed on in a step."""
        return self.units * len(self.model.outputs)

    @property
    def mixes(self) -> str:
        """Say that more is passed on than one value for each current; "": it is not."""
        names = ", ".join(self.model.outputs)
        return f"(Brian2Layer) passes on {names}" if self.model.details.records else ""

    @cached_property
    def scale(self) -> float:
        """The distance to the threshold that counts as 1 in the surrogate."""
        return self.model.surrogate_scale

    def constants(self) -> dict[str, Tensor]:
        """Return the learned constants in SI units, each ``[units]``."""
        trainable = self.model.trainable.items()
        return {name: value(self.factors[name], *bounds) for name, bounds in trainable}

    def forward(
        self, current: Tensor | Mapping[str, Tensor], recurrent: nn.Module | None = None
    ) -> Tensor:
        """Return spikes, or the output variable, ``[rows, steps, units]``.

        Args:
            current: ``[rows, steps or 1, units]``, or ``[rows, units]``; by input variable if
                there are several.
            recurrent: maps the spikes of the step before to an additional current.

        Raises:
            BiogradError: the simulation blew up.
            CapabilityError: states shall be handed from window to window, but there are several
                input variables; or there is no derivative.
        """
        with self._turn:  # the prepared simulations hold one trial
            return self._trial(current, recurrent)

    def _trial(self, current: Tensor | Mapping[str, Tensor], recurrent: nn.Module | None) -> Tensor:
        currents = self.trials(current)
        check_shapes(self.model, currents, self.units, self.steps)
        if recurrent is not None or self.transport.slots:
            if len(currents) > 1:
                raise CapabilityError(
                    f"{self.model.where} has several input variables: no states can be handed "
                    "from window to window"
                )
            return super().forward(currents[self.port], recurrent)
        currents = in_units(self.model, currents)
        both, constants = self.ways(currents), self.constants()
        asked = [*both[0][0].values(), *constants.values()]
        if self.forward_only or not any(differentiated(values) for values in asked):
            found = self._simulate(currents, constants).to(currents[self.port].dtype)
            # constants alone: rules that perturb them need no derivative, others leave them be
            return without_derivative(found, self.forward_only, both[0][0].values())
        record = self._record(currents, constants)
        drives = [(admitted(self.model, into, record), window) for into, window in needed(both)]
        courses = [
            join(
                [self._replayed(output, record, into, window, constants) for into, window in drives]
            )
            for output in self.model.outputs
        ]
        return torch.cat(courses, -1) if len(courses) > 1 else courses[0]

    def _replayed(
        self,
        output: str,
        record: Record,
        drives: Mapping[str, Tensor],
        window: int | None,
        constants: Mapping[str, Tensor],
    ) -> Tensor:
        scale = self.scale if self.model.spiking else 1.0
        return replay(self.step, record, drives, constants, self.derivative, window, scale, output)

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the surrogate derivative of a spike by its scaled distance to the threshold."""
        other: Derivative | None = self.transport.derivative
        return other(distance) if other else SURROGATES[self.surrogate](distance, self.slope)

    def _simulate(self, currents: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
        outputs = self.model.outputs
        keep = [name for name in outputs if name != "spikes"]
        small = all(values.dtype is torch.float32 for values in currents.values())
        kind = "float32" if small else "float64"
        train, kept = self._run(currents, constants, keep, kind=kind)
        courses = [torch.from_numpy(kept.get(name, train)).transpose(0, 1) for name in outputs]
        return torch.cat(courses, -1) if len(courses) > 1 else courses[0]

    def _record(self, currents: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Record:
        step, refractory = self.step, "not_refractory" in self.model.sample.variables
        ready = ("not_refractory",) if refractory else ()
        rows = len(currents[self.port])
        noise, simulation = self._noise(rows), self.simulation(rows)
        simulation.begin(arrays(constants))
        initial = {name: torch.from_numpy(simulation.values[name].copy()) for name in step.states}
        train, kept = self._run(currents, constants, (*step.states, *ready), noise)
        spikes = torch.from_numpy(train)
        given = {name: torch.from_numpy(values) for name, values in noise.items()}
        for name in step.reads:
            if name not in given and name not in constants:
                given[name] = torch.from_numpy(simulation.values[name].copy())
        # the threshold makes those that spike refractory; before, they were not
        armed = torch.from_numpy(kept.pop("not_refractory")) | (spikes > 0) if refractory else None
        states = {name: torch.from_numpy(kept[name]) for name in step.states}
        return Record(states, initial, spikes, armed, given, self.model.dt_ms / 1000)

    def _run(
        self,
        currents: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        keep: Sequence[str],
        noise: Mapping[str, Array] | None = None,
        kind: str = "float64",
    ) -> tuple[Array, dict[str, Array]]:
        rows = len(currents[self.port])
        noise = self._noise(rows) if noise is None else noise
        simulation = self.simulation(rows)
        given = {port: in_time(values) for port, values in currents.items()}
        with np.errstate(all="ignore"):  # what overflows is found below
            found = simulation.run(given, self.steps, noise, arrays(constants), keep, kind)
        self._check(simulation)
        return found

    def _check(self, simulation: Simulation) -> None:
        equations = self.model.equations
        states = () if self.forward_only else self.step.states
        simulation.check_finite(
            (*equations.diff_eq_names, *states, *self.model.ports),
            self.model.details.stream or self.model.where,
            "take shorter steps, another method, or a weaker current, if the weights before it are "
            "finite",
            constants=equations.parameter_names,
        )

    def _noise(self, rows: int) -> dict[str, Array]:
        """Return what stands for ``xi``, ``[steps, rows, units]``, the same in all copies."""
        names = self.model.noises
        if not names:
            return {}
        shape = (len(names), self.steps, self.units)
        if self.shared is None or self.shared.recording is None:
            stream = generator(0, "noise")
            draws = parallel.rows(lambda count: torch.randn(count, *shape, generator=stream), rows)
        else:
            draws = self.shared.draw(self, rows, shape)
        scaled = array(draws) / math.sqrt(self.model.dt_ms / 1000)
        return {self.model.noise(n): scaled[:, k].swapaxes(0, 1) for k, n in enumerate(names)}

    # Step by step: with a recurrent layer, or when states are handed from window to window.

    def begin(self, current: Tensor) -> State:
        """Put the simulation where a trial begins and return the state there.

        Args:
            current: ``[rows, steps or 1, units]``; of it, shape and dtype.
        """
        rows = len(current)
        self._constants, self._drawn = self.constants(), self._noise(rows)
        self._now, self._index = self.simulation(rows), 0
        self._now.begin(arrays(self._constants))
        names = () if self.forward_only else self.step.states
        values = [torch.from_numpy(self._now.values[name]).to(current) for name in names]
        return (*(value.clone() for value in values), torch.zeros_like(current[:, 0]))

    def advance(
        self,
        state: State,
        current: Tensor | Mapping[str, Tensor],
        fed: Tensor | None,
        first: bool,
    ) -> tuple[State, Tensor]:
        """Return the state after one step, and its spikes; Brian2 takes the step once."""
        totals = self.driven(current, fed)
        totals = in_units(self.model, totals)
        total, now = totals[self.port], self._now
        if first:
            drawn = {name: values[self._index] for name, values in self._drawn.items()}
            names = () if self.forward_only else (*self.step.reads, *self._guards)
            self._before = {n: now.values[n].copy() for n in names if n in now.values}
            with np.errstate(all="ignore"):
                now.step(arrays(totals), drawn)
            self._index += 1
            if self._index == self.steps:
                self._check(now)
        names = () if self.forward_only else self.step.states
        seen = [torch.from_numpy(now.values[name]).to(total, copy=True) for name in names]
        spikes = torch.from_numpy(now.spikes).to(total, copy=True)
        asked = (*totals.values(), *state, *self._constants.values())
        derivative = any(differentiated(values) for values in asked)
        if derivative and not self.forward_only:
            found, fired = self._follow(state, totals)
            seen = [with_way(value, way) for value, way in zip(seen, found, strict=True)]
            spikes = with_way(spikes, fired)
        known = {"spikes": spikes, **dict(zip(names, seen, strict=True))}
        for name in self.model.outputs:
            if name not in known:
                known[name] = torch.from_numpy(now.values[name]).to(total, copy=True)
        parts = [known[name] for name in self.model.outputs]
        passed = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        if derivative and self.forward_only:
            passed = without_derivative(passed, self.forward_only, (*totals.values(), *state))
        return (*seen, spikes), passed

    @property
    def _guards(self) -> tuple[str, ...]:
        return ("not_refractory",) if self.model.guarded else ()

    def _follow(self, state: State, totals: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the step's states and spikes as torch computes them, for their graph."""
        index, now, step = self._index - 1, self._now, self.step
        like = state[-1]
        *values, spikes = (part.double() for part in state)
        known = {
            **{name: torch.from_numpy(value) for name, value in self._before.items()},
            **{name: torch.from_numpy(value[index]) for name, value in self._drawn.items()},
            **{name: value.double() for name, value in self._constants.items()},
            **dict(zip(step.states, values, strict=True)),
        }
        ready = None
        if "not_refractory" in now.values:
            # the threshold makes those that spike refractory; before, they were not
            ready = torch.from_numpy(now.values["not_refractory"] | (now.spikes > 0))
        inputs = {port: total.double() for port, total in totals.items()}
        for port in self.model.guarded:
            inputs[port] = inputs[port] * torch.from_numpy(self._before["not_refractory"])
        time = index * self.model.dt_ms / 1000
        found, crossing = step.advance(known, inputs, spikes, ready, time)
        fired = torch.zeros_like(like)
        if crossing is not None:
            fired = spike(crossing.distance / self.scale, derivative=self.derivative).to(like)
            if crossing.allowed is not None:
                fired = fired * crossing.allowed
        return [found[name].to(like) for name in step.states], fired

    def describe_neurons(self) -> dict[str, Any]:
        """Return equations, conditions and values, as JSON values."""
        return described(self.model, self.units, self.surrogate, self.slope)

    def extra_repr(self) -> str:
        """Return what the population is for ``print``."""
        recipe, head = self.model.recipe, f"{self.units}, steps={self.steps}"
        return f"{head}, threshold={recipe.threshold!r}, {brief(recipe.equations)}"

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but what a trial holds."""
        held = ("_now", "_constants", "_drawn", "_before", "shared")
        return {name: value for name, value in self.__dict__.items() if name not in held}
