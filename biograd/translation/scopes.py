"""The statements of one code object of Brian2 as expressions, on top of the states that it finds.

Statements are read as a syntax tree of which only arithmetic, comparisons, names and Brian2's own
functions are allowed; nothing of it is executed as Python.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from biograd.errors import CapabilityError, brief
from biograd.translation.expressions import Expression, ExpressionGraph
from biograd.translation.operations import FUNCTIONS_OF_ONE
from biograd.translation.statements import live, statements_of

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


class Scope:
    """The statements of one of Brian2's code objects, on top of the states that it finds.

    Attributes:
        guarded: whether refractory neurons keep what the equations say that they keep.
    """

    guarded = True

    def __init__(
        self,
        group: Any,
        graph: ExpressionGraph,
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
                return read(self.graph, variable, name)
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


class Reset(Scope):
    """The statements of a reset, for those that had spiked.

    Attributes:
        held: the states whose reset is held constant.
        seen: what is bound, as the reset of a potential reads it: others with their credit.
    """

    guarded = False

    def __init__(
        self,
        group: Any,
        graph: ExpressionGraph,
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


def read(graph: ExpressionGraph, variable: Any, name: str) -> Expression:
    """Return a variable of the population as an input, always a number outside."""
    value = graph.input(name)
    return value.apply("ne", 0.0) if np.issubdtype(variable.dtype, np.bool_) else value
