"""The step of a Brian2 population as expressions that torch can evaluate and differentiate.

Brian2 turns the equations of a ``NeuronGroup`` into statements, one list each for the update of the
state, the threshold and the reset.  Here the same statements, in the order of operations in which
Brian2 compiles them, become a graph of expressions.  One step, from what stood after the threshold
of the step before::

    1. state += z            impulses arrive (ports that have a differential equation)
    2. state  = reset        where the neuron had spiked
    3. state  = update       state update, and statements that run in every step
    4. spike  = A > B        distance to the threshold, A - B

Ports that are parameters are set between 2 and 3.

The spikes s of the step before enter a reset twice, with the same values::

    potential        x = x + held  (reset - x)      no credit: the reset is held constant
    other variables  x = x + fired (reset - x)      dx/ds = reset - x, the jump that a spike makes

A potential is a state that stands in the threshold and does not lower the distance A - B; if all
lower it, as in ``v < c``, all are.  So v in ``v > 1 + theta`` is one, and an adaptation is none:
``theta += jump`` says what a spike costs later spikes.  Whether a state lowers the distance is the
sign of the derivative where a trial begins (a value of zero counts as 1).  Where a potential's
reset reads another variable, it reads it with its credit.  Booleans and integers carry none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from biograd.errors import CapabilityError, nearest
from biograd.translation.expressions import Expression, ExpressionGraph
from biograd.translation.scopes import FIRED, HELD, JUST_OVER, READY, TIME, Reset, Scope, read
from biograd.translation.statements import KEPT, runners_of, statements_of


class Crossing(NamedTuple):
    """Where neurons stand to their threshold: they spike above it where they are allowed to.

    Attributes:
        distance: above zero over the threshold, in the unit of what is compared.
        allowed: whether the rest of the condition holds, bool; None: there is none.
    """

    distance: Tensor
    allowed: Tensor | None

    def spikes(self) -> Tensor:
        """Return 1 where a neuron spikes and 0 elsewhere, in float64."""
        over = self.distance > 0
        return (over if self.allowed is None else over & self.allowed).to(torch.float64)


@dataclasses.dataclass(frozen=True)
class NeuronStep:
    """One step of a population as expressions.

    Attributes:
        population: name of the group.
        states: variables that change from step to step.
        ports: input variables: of ``states``, they receive impulses; else they are set.
        reads: other values by name that the step needs.
        jumps: states whose reset carries credit back to the spike, as an adaptation's.
        dt: length of a step in seconds; it is part of the expressions.
        update: graph of steps 2 and 3, whose inputs are ``states``, ``reads``, ports, and the
            spikes, readiness and time; ``updated`` are the new states.
        crossing: graph of step 4, whose inputs are the new states and the rest as before.
        distance: to the threshold; None: there is none.
        allowed: the rest of the condition of a spike; None: there is none.
    """

    population: str
    states: tuple[str, ...]
    ports: tuple[str, ...]
    reads: tuple[str, ...]
    jumps: tuple[str, ...]
    dt: float
    update: ExpressionGraph
    updated: Mapping[str, Expression]
    crossing: ExpressionGraph
    distance: Expression | None
    allowed: Expression | None

    def advance(
        self,
        values: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        spikes: Tensor,
        ready: Tensor | None = None,
        time: Tensor | float = 0.0,
    ) -> tuple[dict[str, Tensor], Crossing | None]:
        """Return the new state and where it stands to the threshold; differentiable.

        All are float64 of any shapes that can be broadcast together.

        Args:
            values: the state before, and the values that the step ``reads``.
            inputs: of the ports in this step.
            spikes: of the step before, ``[..., rows, U]``; the reset of a potential holds them
                constant.
            ready: not refractory in this step; None: never refractory.
            time: of the step, in seconds.
        """
        given = {**self.around(spikes, ready, time), **values}
        for port, value in inputs.items():
            given[port] = values[port] + value if port in self.states else value
        new = dict(zip(self.states, self.update.evaluate(self.wanted(), given), strict=True))
        new = {name: _tensor(value, values[name]) for name, value in new.items()}
        return new, self.stand({**given, **new})

    def wanted(self) -> list[Expression]:
        """Return the expressions of the new states, in their order."""
        return [self.updated[name] for name in self.states]

    def around(
        self, spikes: Tensor, ready: Tensor | None, time: Tensor | float
    ) -> dict[str, Tensor]:
        """Return the inputs of the graphs that are no values of the population: ``i``, ``t``..."""
        rows, units = spikes.shape[-2:]
        return {
            HELD: spikes.detach() != 0,
            FIRED: spikes.to(torch.float64),
            READY: torch.ones((), dtype=torch.bool) if ready is None else ready,
            TIME: torch.as_tensor(time, dtype=torch.float64),
            "i": torch.arange(rows * units, dtype=torch.float64).reshape(rows, units),
            "N": torch.tensor(rows * units, dtype=torch.float64),
        }

    def stand(self, given: Mapping[str, Tensor]) -> Crossing | None:
        """Return where neurons stand to the threshold, by the inputs of ``crossing``."""
        if self.distance is None:
            return None
        if self.allowed is None:
            return Crossing(self.crossing.evaluate([self.distance], given)[0], None)
        distance, allowed = self.crossing.evaluate([self.distance, self.allowed], given)
        return Crossing(distance, torch.as_tensor(allowed))


def translate(group: Any, ports: Sequence[str] = ()) -> NeuronStep:
    """Return the step of a ``NeuronGroup`` whose network has been run, if only for 0 s.

    Args:
        group: the population.
        ports: names of its input variables.

    Raises:
        CapabilityError: the equations hold something that cannot be translated.
    """
    for port in ports:
        if port not in group.variables:
            known = nearest(port, group.equations.names)
            raise CapabilityError(f"population {group.name}: no variable {port!r}: {known}")
    translation = _Translation(group)
    for port in ports:
        if port in translation.states and port not in group.equations.diff_eq_names:
            raise CapabilityError(
                f"population {group.name}: input {port!r} is a parameter that the update or the "
                "reset assigns; give it a differential equation, or take another parameter"
            )
    return translation.step(tuple(ports))


class _Translation:
    """The translation of one population."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.before, self.threshold, self.resets = runners_of(group)
        self.states = self._states()

    def step(self, ports: tuple[str, ...]) -> NeuronStep:
        crossing = ExpressionGraph()
        distance, allowed = None, None
        if self.threshold is not None:
            bound = {name: self._variable(crossing, name) for name in self.states}
            scope = Scope(self.group, crossing, bound, self.threshold, "the threshold")
            distance, allowed = scope.crossing()
        held = self._held(crossing, distance)
        update = ExpressionGraph()
        bound = {name: self._variable(update, name) for name in self.states}
        for runner in self.resets:
            bound = Reset(self.group, update, bound, runner, held).run()
        fired = update.input(FIRED)
        jumps = [n for n, node in bound.items() if not update.derivative(node, fired).equals(0)]
        for runner in self.before:
            bound = Scope(self.group, update, bound, runner, "the update").run()
        updated = {name: node.apply("number") for name, node in bound.items()}
        needed = update.inputs(updated.values())
        needed |= crossing.inputs([node for node in (distance, allowed) if node is not None])
        own = {HELD, FIRED, READY, TIME, "i", "N", *self.states, *ports}
        return NeuronStep(
            population=self.group.name,
            states=self.states,
            ports=ports,
            reads=tuple(sorted(needed - own)),
            jumps=tuple(jumps),
            dt=float(self.group.clock.dt_),
            update=update,
            updated=updated,
            crossing=crossing,
            distance=distance,
            allowed=allowed,
        )

    def _states(self) -> tuple[str, ...]:
        runners = [*self.before, *self.resets]
        names = [statement.var for runner in runners for statement in statements_of(runner)]
        own = [name for name in names if name in self.group.variables and name not in KEPT]
        return tuple(dict.fromkeys(own))

    def _held(self, crossing: ExpressionGraph, distance: Expression | None) -> set[str]:
        """Return the potentials, and the variables that are no real numbers."""
        kinds = {name: self.group.variables[name].dtype for name in self.states}
        whole = {name for name, kind in kinds.items() if not np.issubdtype(kind, np.floating)}
        if distance is None:
            return whole
        if distance.operation == "where" and distance.arguments[1].equals(JUST_OVER):
            distance = distance.arguments[2]
        standing = [name for name in self.states if name in crossing.inputs([distance])]
        slopes = [crossing.derivative(distance, crossing.input(name)) for name in standing]
        given = {name: self._begun(name) for name in crossing.inputs(slopes)}
        found = zip(standing, crossing.evaluate(slopes, given), strict=True)
        raising = {name for name, slope in found if not (torch.as_tensor(slope) < 0).all()}
        return whole | (raising or set(standing))

    def _begun(self, name: str) -> Tensor:
        """Return a value where a trial begins; zero, which tells no sign, counts as 1."""
        if name == READY:
            return torch.ones((), dtype=torch.bool)
        known = name in self.group.variables
        value = np.asarray(self.group.variables[name].get_value() if known else 1.0, np.float64)
        return torch.from_numpy(np.where(value == 0, 1.0, value))

    def _variable(self, graph: ExpressionGraph, name: str) -> Expression:
        return read(graph, self.group.variables[name], name)


def _tensor(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value)
