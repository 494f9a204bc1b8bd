"""A whole Brian2 network as a box: a current goes in, counts or means come out, weights are set.

Everything is allowed inside: plasticity, several clocks, random input, custom operations.  The
price: the only way to its own synapses is to perturb them (``weight_perturbation``); torch layers
in front of it learn by any rule that perturbs their currents.  All rows of a batch are one run of a
network that has everything once for each row (``brian.replicated``); where that cannot be, each row
is a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from biograd.brian.described import objects, written
from biograd.brian.import_brian2 import import_brian2, one_line
from biograd.brian.joint_run import JointRun, PreparedRun
from biograd.brian.replicated import Alone, Replicas
from biograd.contracts.credit_paths import without_derivative
from biograd.errors import BiogradError, CapabilityError, RecipeError, brief, nearest
from biograd.process.threads import Turn
from biograd.ranks import parallel
from biograd.recipes import Positive, validate
from biograd.substrate.copies import SharedRandomness

STATE = "biograd_begin"
LARGEST = 2**22
"""Neurons and synapses that are run together."""
KEPT = 4
"""Networks for numbers of rows: training, last batch, evaluation, probe."""


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
        alone: why every row is a run of its own; "": all rows of a batch are one run, or none of
            several rows has come yet.

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
        self.source, self.output = (input[0], input[1]), (output[0], output[1])
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
        self._prepared = PreparedRun(network) if len(clocks) == 1 else None
        self._steps = 0 if self._prepared is None else self._whole(self._prepared.dt_ms)
        self.alone, self._rows, self._checked = "", dict[int, JointRun](), False

    @property
    def mixes(self) -> str:
        """Say that what comes out is not of the neurons that the current goes into."""
        if self.source[0] == self.output[0]:
            return ""
        return f"(Brian2Box) takes the current of {self.source[0]} and gives {self.output[0]}"

    def _whole(self, dt_ms: float) -> int:
        """Return the number of steps of a trial."""
        steps = round(self.duration_ms / dt_ms)
        if not steps or abs(self.duration_ms / dt_ms - steps) > 1e-6:
            raise RecipeError(
                f"Brian2Box: duration_ms = {self.duration_ms:g}: no multiple of the network's step "
                f"of {dt_ms:g} ms"
            )
        return steps

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
        seeds = self._seeds(len(given))
        with self._turn, one_line("Brian2Box"):
            kept = np.random.get_state()  # Brian2's seed is NumPy's
            try:
                with np.errstate(all="ignore"):
                    found = self._together(given, seeds)
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

    def _values(self) -> dict[str, Any]:
        """Return the trained variables as they are to be set."""
        found = {name: self.values[name.replace(".", "_")] for name in self._trained}
        return {name: value.detach().cpu().double().numpy() for name, value in found.items()}

    def _together(self, given: Any, seeds: list[int]) -> Any:
        """Return what comes out of all rows, of one run if it can be."""
        if self.alone:
            return self._one_by_one(given, seeds)
        size = min(len(given), self._most())
        try:
            rows = self._rows.get(size) or self._replicated(size)
        except Alone as reason:
            self.alone = str(reason)
            return self._one_by_one(given, seeds)
        found = []
        for first in range(0, len(given), size):
            chosen = [*range(first, min(first + size, len(given)))]
            chosen += chosen[-1:] * (size - len(chosen))  # what is short is run and left out
            own = [seeds[row] for row in chosen]
            found.append(rows(given[chosen], self._values(), self._steps, own))
        together = np.concatenate(found)[: len(given)]
        if self._checked or rows.replicas.draws:  # other random numbers of the same law
            return together
        return self._check(together, given, seeds)

    def _check(self, found: Any, given: Any, seeds: list[int]) -> Any:
        """Compare two rows of the first batch with runs of their own."""
        ends = [0, -1]
        expected = self._one_by_one(given[ends], [seeds[0], seeds[-1]])
        self._checked = True
        if np.allclose(found[ends], expected, rtol=1e-9, atol=1e-12, equal_nan=True):
            return found
        self.alone, self._rows = "rows that ran together gave other values than alone", {}
        return self._one_by_one(given, seeds)

    def _one_by_one(self, given: Any, seeds: list[int]) -> Any:
        return np.stack([self._trial(row, seed) for row, seed in zip(given, seeds, strict=True)])

    def _most(self) -> int:
        """Return how many rows are run together: what they need stays in memory."""
        size = sum(len(one) for one in self._objects.values() if hasattr(one, "__len__"))
        return max(1, LARGEST // max(size, 1))

    def _replicated(self, rows: int) -> JointRun:
        if self._prepared is None:
            raise Alone("several clocks")
        self.network.restore(STATE)
        trained = [_parts(name) for name in self._trained]
        b2 = import_brian2()
        try:
            replicas = Replicas(self.network, rows, self.namespace)
            made = JointRun(replicas, self.source, self.output, trained)
        except (b2.BrianObjectException, NotImplementedError, TypeError, ValueError) as error:
            raise Alone(f"Brian2: {brief(str(error))}") from error
        while len(self._rows) >= KEPT:
            self._rows.pop(next(iter(self._rows)))
        self._rows[rows] = made
        return made

    def _trial(self, current: Any, seed: int) -> Any:
        self.network.restore(STATE)
        import_brian2().seed(seed)
        for name, value in self._values().items():
            self._trained[name][:] = value
        self._into[:] = current
        if self._prepared is None:
            self.network.run(self.duration_ms * import_brian2().ms, namespace=self.namespace)
        else:
            self._prepared(self._steps)
        if self.output[1] == "spikes":
            return np.array(self._monitor.count, dtype=float)
        return np.asarray(getattr(self._monitor, self.output[1] + "_")).mean(1)

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
