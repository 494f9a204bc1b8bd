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

Statements are read as a syntax tree of which only arithmetic, comparisons, names and Brian2's own
functions are allowed; nothing of it is executed as Python.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from biograd.errors import CapabilityError, nearest
from biograd.networks.expressions import Expression, Graph
from biograd.networks.neuron_checks import brief
from biograd.networks.operations import FUNCTIONS_OF_ONE
from biograd.networks.statements import KEPT, live, runners_of, statements_of

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.And: "and",
    ast.Or: "or",
    ast.Not: "not",
    ast.USub: "neg",
}
FUNCTIONS = FUNCTIONS_OF_ONE - {"trunc"} | {"clip", "int", "timestep"}
"""Brian2's functions that have a counterpart here."""

HELD, FIRED, READY, TIME = "_held", "_fired", "_ready", "_time"
"""Inputs of an update that are not variables of the population: Brian2 reserves the underscore."""
JUST_OVER = 1e-300
"""Stands for a distance of zero where the threshold is ``>=``, so that spikes lie above zero."""


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
    update: Graph
    updated: Mapping[str, Expression]
    crossing: Graph
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
        crossing = Graph()
        distance, allowed = None, None
        if self.threshold is not None:
            bound = {name: self._variable(crossing, name) for name in self.states}
            scope = _Scope(self.group, crossing, bound, self.threshold, "the threshold")
            distance, allowed = scope.crossing()
        held = self._held(crossing, distance)
        update = Graph()
        bound = {name: self._variable(update, name) for name in self.states}
        for runner in self.resets:
            bound = _Reset(self.group, update, bound, runner, held).run()
        fired = update.input(FIRED)
        jumps = [n for n, node in bound.items() if not update.derivative(node, fired).equals(0)]
        for runner in self.before:
            bound = _Scope(self.group, update, bound, runner, "the update").run()
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

    def _held(self, crossing: Graph, distance: Expression | None) -> set[str]:
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

    def _variable(self, graph: Graph, name: str) -> Expression:
        return _read(graph, self.group.variables[name], name)


class _Scope:
    """The statements of one of Brian2's code objects, on top of the states that it finds.

    Attributes:
        guarded: whether refractory neurons keep what the equations say that they keep.
    """

    guarded = True

    def __init__(
        self,
        group: Any,
        graph: Graph,
        states: Mapping[str, Expression],
        runner: Any,
        place: str,
    ) -> None:
        self.group, self.graph, self.runner, self.place = group, graph, runner, place
        self.states, self.bound = states, dict(states)
        self.variables = runner.codeobj.variables
        self.ready = graph.input(READY, boolean=True)

    def run(self) -> dict[str, Expression]:
        """Return the states after the statements."""
        for statement in live(statements_of(self.runner)):
            self._assign(statement)
        return {name: self.bound[name] for name in self.states}

    def crossing(self) -> tuple[Expression, Expression | None]:
        """Return the distance to the threshold and the rest of the condition, if there is one."""
        *preludes, condition = statements_of(self.runner)
        for statement in preludes:
            self._assign(statement)
        distance: Expression | None = None
        allowed: Expression | None = None
        for part in _conjuncts(ast.parse(condition.expr, mode="eval").body):
            found = self._distance(part) if distance is None else None
            distance = distance or found
            if found is None:
                holds = self._truth(part)
                allowed = holds if allowed is None else allowed.apply("and", holds)
        if distance is None:
            text = self.group.events["spike"]
            form = "A > B with a state variable, and what else must hold joined by 'and'"
            self._refuse(f"{brief(text)!r}, which is not of the form {form}")
            raise AssertionError
        return distance, allowed

    def _distance(self, part: ast.expr) -> Expression | None:
        """Return how far a comparison is from becoming true, if it involves a state variable."""
        if not (isinstance(part, ast.Compare) and len(part.ops) == 1):
            return None
        operation = OPERATORS.get(type(part.ops[0]))
        if operation not in ("gt", "ge", "lt", "le"):
            return None
        left, right = self._walk(part.left), self._walk(part.comparators[0])
        if not self.graph.inputs([left, right]) & set(self.states):
            return None
        distance = left - right if operation in ("gt", "ge") else right - left
        if operation in ("ge", "le"):
            # firing at a distance of zero is firing above zero, at the next number
            return distance.apply("eq", 0.0).apply("where", JUST_OVER, distance)
        return distance

    def _assign(self, statement: Any) -> None:
        self.bound[statement.var] = self._assigned(statement)

    def _assigned(self, statement: Any) -> Expression:
        name, value = statement.var, self._walk(ast.parse(statement.expr, mode="eval").body)
        if statement.op not in ("=", ":="):
            signs = {"+=": "add", "-=": "sub", "*=": "mul", "/=": "div", "//=": "floordiv"}
            signs |= {"%=": "mod", "**=": "pow"}
            if statement.op not in signs:
                self._refuse(f"an assignment by {statement.op!r}")
            value = self._name(name).apply(signs[statement.op], value)
        return self._stored(name, value) if name in self.states else value

    def _stored(self, name: str, value: Expression) -> Expression:
        """Return what a variable of the population keeps of a value that is assigned to it."""
        variable = self.group.variables[name]
        if np.issubdtype(variable.dtype, np.bool_):
            value = value if value.boolean else value.apply("ne", 0.0)
        elif np.issubdtype(variable.dtype, np.integer):
            value = value.apply("trunc")
        if variable.conditional_write is None or not self.guarded:
            return value
        return self.ready.apply("where", value, self.bound[name])

    def _walk(self, node: ast.expr) -> Expression:
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                return self.graph.constant(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
                return self.graph.apply(OPERATORS[type(sign)], self._walk(left), self._walk(right))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._walk(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self._truth(operand).apply("not")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._walk(operand).apply("neg")
            case ast.BoolOp(op=sign, values=[first, *others]):
                whole = self._truth(first)
                for other in others:
                    whole = whole.apply(OPERATORS[type(sign)], self._truth(other))
                return whole
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in OPERATORS:
                return self.graph.apply(OPERATORS[type(sign)], self._walk(left), self._walk(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                self._check_function(name)
                return self._call(name, [self._walk(argument) for argument in arguments])
        self._refuse(f"{ast.unparse(node)!r} ({type(node).__name__})")
        raise AssertionError

    def _truth(self, node: ast.expr) -> Expression:
        value = self._walk(node)
        return value if value.boolean else value.apply("ne", 0.0)

    def _name(self, name: str) -> Expression:
        if name in self.bound:
            return self.bound[name]
        if name == "not_refractory":
            return self.ready
        if name == "lastspike" or name not in self.variables:
            self._refuse(f"{name!r}, which is not recorded")
        variable = self.variables[name]
        match type(variable).__name__:
            case "Constant" if name == "N":
                return self.graph.input(name)
            case "Constant" | "SymbolicConstant":
                return self.graph.constant(np.asarray(variable.get_value()).item())
            case "ArrayVariable" if name == "dt":
                return self.graph.constant(float(self.group.clock.dt_))
            case "ArrayVariable" if name == "t":
                return self.graph.input(TIME)
            case "ArrayVariable" if name in self.group.variables and name != "t_in_timesteps":
                return _read(self.graph, variable, name)
        self._refuse(f"{name!r} ({type(variable).__name__})")
        raise AssertionError

    def _check_function(self, name: str) -> None:
        """Refuse what is not one of Brian2's own functions with a counterpart here."""
        from brian2.core.functions import DEFAULT_FUNCTIONS

        if name in ("rand", "randn", "poisson"):
            self._refuse(f"{name}(), which is not recorded")
        own = name in DEFAULT_FUNCTIONS and self.variables.get(name) is DEFAULT_FUNCTIONS[name]
        if not own or name not in FUNCTIONS:
            self._refuse(f"the function {name}(), whose derivative is not known")

    def _call(self, name: str, arguments: Sequence[Expression]) -> Expression:
        match name, arguments:
            case "int", [value]:
                return value.apply("number" if value.boolean else "trunc")
            case "timestep", [time, dt]:
                # a thousandth of a step more, against rounding: as Brian2 counts steps
                return ((time + 1e-3 * dt) / dt).apply("trunc")
            case "clip", [value, low, high]:
                below = value.apply("gt", high).apply("where", high, value)
                return value.apply("lt", low).apply("where", low, below)
            case _, [value] if name in FUNCTIONS_OF_ONE:
                return value.apply(name)
        self._refuse(f"{name}() of {len(arguments)} arguments")
        raise AssertionError

    def _refuse(self, what: str) -> None:
        raise CapabilityError(
            f"population {self.group.name}: {self.place} has no derivative because of {what}; "
            "train it by a rule without derivatives, or change the equations"
        )


class _Reset(_Scope):
    """The statements of a reset, for those that had spiked.

    Attributes:
        held: the states whose reset is held constant.
        seen: what is bound, as the reset of a potential reads it: others with their credit.
    """

    guarded = False

    def __init__(
        self,
        group: Any,
        graph: Graph,
        states: Mapping[str, Expression],
        runner: Any,
        held: Collection[str],
    ) -> None:
        super().__init__(group, graph, states, runner, "the reset")
        self.held, self.seen = held, dict(states)
        self.ready = graph.constant(False)  # a spike ends readiness, before the reset

    def run(self) -> dict[str, Expression]:
        """Return the states after the reset, where neurons had spiked."""
        super().run()
        spikes = self.graph.input(HELD, boolean=True)
        return {
            name: spikes.apply("where", self.seen[name], old)
            if name in self.held
            else self.seen[name]
            for name, old in self.states.items()
        }

    def _assign(self, statement: Any) -> None:
        name, bound = statement.var, self.bound
        self.bound = self.seen
        seen = self._assigned(statement)
        self.bound = bound
        bound[name] = self._assigned(statement)
        if name in self.states and name not in self.held:
            seen = self.graph.input(FIRED).apply("jump", bound[name], self.states[name])
        self.seen[name] = seen


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    """Return the parts of a condition that must all be true."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    return [node]


def _read(graph: Graph, variable: Any, name: str) -> Expression:
    """Return a variable of the population as an input, always a number outside."""
    value = graph.input(name)
    return value.apply("ne", 0.0) if np.issubdtype(variable.dtype, np.bool_) else value


def _tensor(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value)
