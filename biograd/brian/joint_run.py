"""A Brian2 network, prepared once and stepped directly; and its replicas, run for all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.replicated import Alone, Replicas


class PreparedRun:
    """The steps of a network of one clock, called directly.

    Args:
        network: that has been run for no time.

    Attributes:
        dt_ms: length of a step.
    """

    def __init__(self, network: Any) -> None:
        parts = [part for part in network.sorted_objects if part.active]
        (clock,) = {part.clock for part in parts}
        variables = clock.variables
        self._runs = [part.run for part in parts]
        self._timestep, self._time = variables["timestep"].get_value(), variables["t"].get_value()
        self._dt = float(variables["dt"].get_value().item())
        self.dt_ms = 1000 * self._dt

    def __call__(self, steps: int, before: Callable[[], None] | None = None) -> None:
        """Take steps; ``before`` is called before each."""
        first = int(self._timestep[0])
        for index in range(steps):
            if before is not None:
                before()
            for run in self._runs:
                run()
            self._timestep[0] = first + index + 1
            self._time[0] = self._timestep[0] * self._dt


class JointRun:
    """A network that runs once for all rows.

    Args:
        replicas: of it.
        into: name of a group and the variable that is set.
        output: name of a group, and "spikes" or a variable.
        trained: names of objects and their variables that are set, ``"object.variable"``.
    """

    STATE = "biograd_rows"

    def __init__(
        self,
        replicas: Replicas,
        into: tuple[str, str],
        output: tuple[str, str],
        trained: Iterable[tuple[str, str]],
    ) -> None:
        b2, self.replicas, self.output = import_brian2(), replicas, output
        source = replicas.copies[output[0]]
        if output[1] == "spikes":
            self._monitor = b2.SpikeMonitor(source, record=False)
        else:
            self._monitor = b2.StateMonitor(source, output[1], record=True, clock=replicas.clock)
        replicas.network.add(self._monitor)
        replicas.network.run(0 * b2.ms, namespace=dict(replicas.namespace))
        views = {pair: replicas.copies[pair[0]].variables[pair[1]] for pair in (into, *trained)}
        if any(view.scalar for view in views.values()):
            raise Alone("a variable that is set is shared by all neurons")
        self._into = views[into].get_value()
        self._trained = {f"{a}.{b}": views[a, b].get_value() for a, b in trained}
        replicas.network.store(self.STATE)
        self.run = PreparedRun(replicas.network)

    def __call__(
        self, given: Any, values: Mapping[str, Any], steps: int, seeds: Sequence[int]
    ) -> Any:
        """Return counts or means ``[rows, units out]`` for currents ``[rows, units in]``."""
        self.replicas.network.restore(self.STATE)
        for name, value in values.items():
            self._trained[name][:] = self.replicas.tiled(value)
        self._into[:] = given.ravel()
        draws = [
            (one.view, one.course(seeds, place)) for place, one in enumerate(self.replicas.draws)
        ]

        def draw() -> None:
            for view, course in draws:
                view[:] = next(course)

        self.run(steps, draw if draws else None)
        if self.output[1] == "spikes":
            found = np.array(self._monitor.count, dtype=float)
        else:
            found = np.asarray(getattr(self._monitor, self.output[1] + "_")).mean(1)
        return found.reshape(self.replicas.rows, -1)
