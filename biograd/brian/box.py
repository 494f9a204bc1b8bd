"""A whole Brian2 network as a box: a current goes in, counts or means come out, weights are set.

Nothing inside is looked at, so that everything is allowed: plasticity, several clocks, random
input, custom operations.  The price: the network is run once for every row, and the only way to
its own synapses is to perturb them (``weight_perturbation``); torch layers in front of it learn by
any rule that perturbs their currents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from biograd.brian.described import objects, written
from biograd.brian.import_brian2 import import_brian2, one_line
from biograd.contracts.credit_paths import without_derivative
from biograd.errors import BiogradError, CapabilityError, RecipeError, nearest
from biograd.ranks import parallel
from biograd.recipes import Positive, validate
from biograd.substrate.copies import SharedRandomness
from biograd.threads import Turn

STATE = "biograd_begin"


class Brian2Box(nn.Module):
    """A Brian2 network as a torch layer ``[rows, units in]`` to ``[rows, units out]``.

    Every row is a trial of its own, from the state in which the network was given.  Random numbers
    of Brian2 are the same in all copies of an example.

    Args:
        network: any; its objects' code is made once.
        input: name of a group, and of its variable that is set to the current (in SI units).
        output: name of a group, and "spikes" for the number of spikes of each neuron, or a
            variable for its mean over the trial (in SI units).
        duration_ms: length of a trial in milliseconds.
        trainable: ``"synapses.w"``, name of an object and its variable that are parameters.
        namespace: what the equations refer to beside their own namespaces.

    Attributes:
        values: the trained variables by name, dots as underscores.
        mixes: in what its outputs are not one for each of its inputs; "": they are.

    Raises:
        RecipeError: no such object or variable.
        BiogradError: what the network gave is not finite.
    """

    draws_noise = True
    shared: SharedRandomness | None = None
    forward_only = "a Brian2Box is not looked into: take Brian2Layer, or wrap the network"

    def __init__(
        self,
        network: Any,
        input: tuple[str, str],
        output: tuple[str, str],
        duration_ms: Positive,
        trainable: Iterable[str] = (),
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        validate(Brian2Box, {"duration_ms": duration_ms})
        if not isinstance(network, import_brian2().Network):
            raise RecipeError(f"Brian2Box: {type(network).__name__} is no brian2.Network")
        for where, pair in (("input", input), ("output", output)):
            if isinstance(pair, str) or len(pair) != 2:
                raise RecipeError(f"Brian2Box: {where} = {pair!r}: write (object, variable)")
        if isinstance(trainable, str):
            trainable = (trainable,)
        self.network = network
        self.duration_ms, self.namespace = float(duration_ms), dict(namespace or {})
        self.source, self.output = tuple(input), tuple(output)
        self._objects = {thing.name: thing for thing in network.objects}
        group = self._object(output[0])
        if output[1] == "spikes":
            if not hasattr(group, "spikes"):
                raise RecipeError(f"Brian2Box: {output[0]} does not spike")
            self._monitor = import_brian2().SpikeMonitor(group, record=False)
        else:
            self._variable(*output)
            self._monitor = import_brian2().StateMonitor(group, output[1], record=True)
        network.add(self._monitor)
        with one_line("Brian2Box"):
            network.run(0 * import_brian2().ms, namespace=self.namespace)
        self._turn = Turn()
        self._into = self._variable(*input)
        self._trained = {name: self._variable(*_parts(name)) for name in trainable}
        self.values = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(torch.as_tensor(variable.copy()).float())
                for name, variable in self._trained.items()
            }
        )
        network.store(STATE)
        clocks = {thing.clock for thing in network.sorted_objects if thing.active}
        self._steps = None if len(clocks) > 1 else self._prepared(clocks)

    @property
    def mixes(self) -> str:
        """Say that what comes out is not of the neurons that the current goes into."""
        if self.source[0] == self.output[0]:
            return ""
        return f"(Brian2Box) takes the current of {self.source[0]} and gives {self.output[0]}"

    def _prepared(self, clocks: set[Any]) -> tuple[Any, int, Any, Any]:
        """Return what is called in a step, the number of steps, and the clock's counters."""
        (clock,) = clocks
        variables = clock.variables
        dt_ms = 1000 * float(variables["dt"].get_value().item())
        steps = round(self.duration_ms / dt_ms)
        if not steps or abs(self.duration_ms / dt_ms - steps) > 1e-6:
            raise RecipeError(
                f"Brian2Box: duration_ms = {self.duration_ms:g}: no multiple of the network's step "
                f"of {dt_ms:g} ms"
            )
        runs = [thing.run for thing in self.network.sorted_objects if thing.active]
        return runs, steps, variables["timestep"].get_value(), variables["t"].get_value()

    def forward(self, current: Tensor) -> Tensor:
        """Return counts or means ``[rows, units out]`` for a current ``[rows, units in]``."""
        if current.dim() != 2 or current.shape[1] != len(self._into) or not len(current):
            raise CapabilityError(
                f"Brian2Box: {'.'.join(self.source)} has {len(self._into)} values, the current "
                f"[rows, units] is {list(current.shape)}"
            )
        given = current.detach().cpu().double().numpy()
        if not np.isfinite(given).all():
            raise BiogradError("Brian2Box: the current is not finite: lower the learning rate")
        trials = zip(given, self._seeds(len(given)), strict=True)
        with self._turn, one_line("Brian2Box"):
            kept = np.random.get_state()  # Brian2's seed is NumPy's
            try:
                with np.errstate(all="ignore"):
                    found = np.stack([self._trial(row, seed) for row, seed in trials])
            finally:
                np.random.set_state(kept)
        if not np.isfinite(found).all():
            raise BiogradError(
                f"Brian2Box: {'.'.join(self.output)} is not finite: take shorter steps, another "
                "method, or a weaker current"
            )
        result = torch.from_numpy(found).to(current)
        # its own values alone: rules that perturb them need no derivative, others leave them be
        return without_derivative(result, self.forward_only, (current,))

    def _seeds(self, rows: int) -> list[int]:
        """Return a seed for each trial, the same in all copies of an example."""
        if self.shared is None or self.shared.recording is None:
            return cast(list[int], parallel.rows(torch.arange, rows).tolist())
        draws = self.shared.draw(self, rows, (1,)).flatten().double()
        return cast(list[int], (draws.abs() * 1e8).long().tolist())

    def _trial(self, current: Any, seed: int) -> Any:
        self.network.restore(STATE)
        import_brian2().seed(seed)
        for name, variable in self._trained.items():
            value = self.values[name.replace(".", "_")]
            variable[:] = value.detach().cpu().double().numpy()
        self._into[:] = current
        if self._steps is None:
            self.network.run(self.duration_ms * import_brian2().ms, namespace=self.namespace)
        else:
            self._step(*self._steps)
        if self.output[1] == "spikes":
            return np.array(self._monitor.count, dtype=float)
        return np.asarray(getattr(self._monitor, self.output[1] + "_")).mean(1)

    def _step(self, runs: list[Any], steps: int, timestep: Any, time: Any) -> None:
        dt = self.duration_ms / 1000 / steps
        first = int(timestep[0])
        for index in range(steps):
            for run in runs:
                run()
            timestep[0] = first + index + 1
            time[0] = timestep[0] * dt

    def _object(self, name: str) -> Any:
        if name not in self._objects:
            raise RecipeError(
                f"Brian2Box: no object {name!r} in the network: {nearest(name, self._objects)}"
            )
        return self._objects[name]

    def _variable(self, name: str, variable: str) -> Any:
        thing = self._object(name)
        found = thing.variables.get(variable) if hasattr(thing, "variables") else None
        if found is None or not getattr(found, "array", False) or found.read_only:
            known = [key for key, one in thing.variables.items() if getattr(one, "array", False)]
            raise RecipeError(
                f"Brian2Box: {name} has no variable {variable!r} that can be set: "
                f"{nearest(variable, known)}"
            )
        return found.get_value()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse copies: Brian2's objects cannot be copied."""
        raise CapabilityError("a Brian2Box cannot be copied or pickled: make it where it is needed")

    def describe_neurons(self) -> dict[str, Any]:
        """Return what the objects in it say of themselves, as JSON values."""
        known = {name: written(value) for name, value in self.namespace.items()}
        return {"objects": objects(self.network), "namespace": known}

    def extra_repr(self) -> str:
        """Return what goes in and out for ``print``."""
        return f"{'.'.join(self.source)} to {'.'.join(self.output)}, {self.duration_ms:g} ms"


def _parts(name: str) -> tuple[str, str]:
    thing, _, variable = name.partition(".")
    if not variable:
        raise RecipeError(f"Brian2Box: trainable {name!r}: write OBJECT.VARIABLE")
    return thing, variable
