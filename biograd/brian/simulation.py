"""A population in Brian2, prepared once and stepped directly.

Every ``Network.run`` costs tens of milliseconds before its first step; the objects that it would
call are public and are called here instead.  A step is Brian2's own, turned by half a round:

1. an impulse port receives its current (Brian2's slot "synapses" of the step before),
2. what spiked in the step before is reset,
3. a parameter port is set and the neurons are updated,
4. those above the threshold spike.

So that the potential before the reset can be seen, and what a population feeds to itself arrives
where Brian2's synapses would bring it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biograd.brian.import_brian2 import choose_target, import_brian2
from biograd.brian.neuron_model import NeuronModel
from biograd.contracts.credit_paths import mapped
from biograd.errors import BiogradError, CapabilityError
from biograd.translation.linearisation import Record

Array = NDArray[np.float64]
Currents = Array | Mapping[str, Array]
"""Of the only port, or by port."""
KEPT = 4
"""Prepared simulations: training, last batch, evaluation, probe."""


class Simulation:
    """``rows`` replicas of a population of ``units`` neurons.

    Attributes:
        spikes: 0 or 1 for every neuron, ``[rows, units]``, in the step that was taken last; the
            next step overwrites it.
        values: name of a variable to its view ``[rows, units]``, in SI units.
    """

    def __init__(self, model: NeuronModel, rows: int, units: int) -> None:
        self.model, self.shape = model, (rows, units)
        self.spikes = np.zeros(self.shape)
        choose_target()
        group = model.group(rows * units)
        network = import_brian2().Network(group)
        model.prepare(network)
        self._network = network  # Brian2 holds its objects weakly
        resets = set(map(id, group.resetter.values()))
        objects = [part for part in network.sorted_objects if part.active]
        self._resets = _calls(part for part in objects if id(part) in resets)
        self._updates = _calls(part for part in objects if id(part) not in resets)
        clock = group.clock.variables
        self._timestep, self._time = clock["timestep"].get_value(), clock["t"].get_value()
        self._dt = float(clock["dt"].get_value().item())
        self._space = group.variables["_spikespace"].get_value() if model.spiking else None
        self._flat, self._nobody = self.spikes.reshape(-1), np.empty(0, np.intp)
        self._begin = _changing(group)
        self.values: dict[str, Any] = {
            name: view.reshape(self.shape if len(view) == len(group) else (1, 1))
            for name, (view, _) in self._begin.items()
        }
        for name, value in model.initial(units).items():
            self.values[name][:] = value
            view = self._begin[name][0]
            self._begin[name] = view, view.copy()
        self._added = [(n, self.values[n], n in model.guarded) for n in model.impulses]
        self._set = [(n, self.values[n]) for n in model.ports if n not in model.impulses]
        self._step = 0

    def begin(self, constants: Mapping[str, Array] | None = None) -> None:
        """Put every neuron where a trial begins.

        Args:
            constants: values of learned constants, in SI units, ``[units]``.
        """
        for view, initial in self._begin.values():
            view[:] = initial
        for name, value in (constants or {}).items():
            self.values[name][:] = value
        if self._space is not None:
            self._space[-1] = 0
        self._step = 0

    def step(self, current: Currents, noise: Mapping[str, Array] | None = None) -> Array:
        """Take one step and return the spikes ``[rows, units]``.

        Args:
            current: ``[rows, units]``, of any type of number; by port if there are several.
            noise: values that stand for ``xi``, by their names.
        """
        fired = self._advance(self._by_port(current), noise)
        self._flat.fill(0)
        self._flat[fired] = 1
        return self.spikes

    def run(
        self,
        current: Currents,
        steps: int,
        noise: Mapping[str, Array] | None = None,
        constants: Mapping[str, Array] | None = None,
        keep: Sequence[str] = (),
        kind: str = "float64",
    ) -> tuple[Array, dict[str, Array]]:
        """Simulate a trial; return the spikes and what is kept, each ``[steps, rows, units]``.

        Args:
            current: ``[steps or 1, rows, units]``, of any type of number; by port if there are
                several.
            noise: ``[steps, rows, units]`` by name.
            constants: see ``begin``.
            keep: names of variables, seen before the reset.
            kind: name of the type of the spikes.
        """
        # most neurons are silent: zeros that nobody touches cost nothing
        train = np.zeros((steps, self._flat.size), kind)
        kept = {name: np.empty((steps, *self.shape), self.values[name].dtype) for name in keep}
        self.begin(constants)
        driven = self._by_port(current)
        for index in range(steps):
            drawn = {name: values[index] for name, values in noise.items()} if noise else None
            now = {p: values[index if len(values) > 1 else 0] for p, values in driven.items()}
            fired = self._advance(now, drawn)
            train[index][fired] = 1
            for name, values in kept.items():
                values[index] = self.values[name]
        return train.reshape(steps, *self.shape), kept

    def check_finite(
        self, names: Iterable[str], where: str, advice: str, constants: Iterable[str] = ()
    ) -> None:
        """Refuse values that blew up: a threshold never lets NaN pass, neurons would fall silent.

        Args:
            constants: names of what may be infinite, but not NaN.

        Raises:
            BiogradError: a value of one of these variables is not finite.
        """
        wrong = {name: ~np.isfinite(self.values[name]) for name in names}
        for name in sorted(self.values.keys() & {*constants} - wrong.keys()):
            wrong[name] = np.isnan(self.values[name])
        for name, places in wrong.items():
            values, count = self.values[name], int(places.sum())
            if count:
                raise BiogradError(
                    f"{where}: {name} of {count} of {values.size} neurons is not finite after "
                    f"{self._step} steps of {self.model.dt_ms:g} ms: {advice}"
                )

    def _by_port(self, current: Currents) -> Mapping[str, Array]:
        return current if isinstance(current, Mapping) else {self.model.port: current}

    def _advance(self, current: Mapping[str, Array], noise: Mapping[str, Array] | None) -> Any:
        """Take one step and return the numbers of the neurons that spiked."""
        for port, values, guarded in self._added:
            values += current[port] * self.values["not_refractory"] if guarded else current[port]
        if self._step:
            for run in self._resets:
                run()
        for port, values in self._set:
            values[:] = current[port]
        for name, value in (noise or {}).items():
            self.values[name][:] = value
        self._timestep[0] = self._step
        self._time[0] = self._step * self._dt
        for run in self._updates:
            run()
        self._step += 1
        if self._space is None:
            return self._nobody
        return self._space[: self._space[-1]].astype(np.intp)  # other numbers index half as fast


class Simulations:
    """The prepared simulations of a population, by number of rows; the least recent is dropped.

    A copy of a population makes its own.
    """

    def __init__(self, model: NeuronModel, units: int) -> None:
        self.model, self.units = model, units
        self.kept: dict[int, Simulation] = {}

    def __call__(self, rows: int) -> Simulation:
        """Return the simulation for a number of rows."""
        found = self.kept.pop(rows, None) or Simulation(self.model, rows, self.units)
        while len(self.kept) >= KEPT:
            self.kept.pop(next(iter(self.kept)))
        self.kept[rows] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": {}}


def array(values: Tensor) -> Array:
    """Return values as a simulation keeps them."""
    return values.detach().cpu().double().numpy()


def arrays(values: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return values by name as a simulation keeps them."""
    return {name: array(value) for name, value in values.items()}


def in_time(values: Tensor) -> Any:
    """Return currents ``[rows, steps, units]`` as the loop takes them, steps first.

    It converts each step as it sets it: a second copy of the whole takes longer.
    """
    small = values.dtype is torch.float32
    return (values if small else values.double()).detach().cpu().numpy().swapaxes(0, 1)


def _calls(parts: Iterable[Any]) -> list[Callable[[], object]]:
    """Return what has to be called in a step: the compiled code, without Brian2's layers over it.

    Those look again for arrays that change their size, which those of neurons never do.
    """
    codes = [code for part in parts for code in part.code_objects]
    return [code if getattr(code, "nonconstant_values", True) else code.run for code in codes]


def _changing(group: Any) -> dict[str, tuple[Any, Any]]:
    """Return the views of everything that belongs to the neurons, and their values now."""
    found = {}
    for name, variable in group.variables.items():
        own = getattr(variable, "owner", None)
        array = hasattr(variable, "get_value") and getattr(variable, "array", False)
        if array and own is not None and own.name == group.name and name not in ("N", "i"):
            view = variable.get_value()
            if len(view) == len(group) or variable.scalar:
                found[name] = (view, view.copy())
    return found


def check_shapes(
    model: NeuronModel, currents: Mapping[str, Tensor], units: int, steps: int
) -> None:
    """Refuse currents that are not ``[rows, steps or 1, units]``.

    Raises:
        CapabilityError: the port, and both shapes.
    """
    for port, values in currents.items():
        fits = values.dim() == 3 and values.shape[1] in (1, steps)
        if not fits or values.shape[2] != units:
            raise CapabilityError(
                f"{model.where}: the current of {port} is [rows, units] or [rows, steps, units] "
                f"with {units} units and {steps} steps, not {list(values.shape)}"
            )


def in_units(model: NeuronModel, currents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return currents in SI units, along both of their ways."""
    return {port: _scaled(values, model.scales[port]) for port, values in currents.items()}


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else mapped(lambda part: scale * part, values)


def admitted(model: NeuronModel, drives: Mapping[str, Tensor], record: Record) -> dict[str, Tensor]:
    """Return the currents without the impulses that refractory neurons did not receive."""
    if not model.guarded or record.ready is None:
        return dict(drives)
    ready = torch.ones_like(record.spikes)
    ready[1:] = (record.ready[:-1] & (record.spikes[:-1] == 0)).to(ready)
    reached = ready.transpose(0, 1)
    return {name: v * reached if name in model.guarded else v for name, v in drives.items()}
