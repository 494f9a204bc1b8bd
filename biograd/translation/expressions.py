"""Expressions as a graph: equal parts are shared, and derivatives are expressions again.

A step of a neuron is a handful of formulas.  Written as a graph of operations they can be evaluated
on tensors of any shape, and differentiated once and for all by the chain rule

    d f(a, b) = f_a da + f_b db                                                      (1)

in which terms that vanish are left out and terms that are constant stay plain numbers.  What
remains is what one would write by hand: the derivative of ``v exp(-dt/tau)`` by ``v`` is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partialmethod
from typing import Any

import torch

from biograd.translation.operations import BOOLEAN, OPERATIONS, Value

Rule = Callable[..., Sequence["Expression | float"]]

# By the value y of the operation and its arguments: the partial derivative by each argument.
# Operations that are missing are constant almost everywhere; "where" and "jump" are treated where
# they are met.
PARTIALS: dict[str, Rule] = {
    "add": lambda y, a, b: (1.0, 1.0),
    "sub": lambda y, a, b: (1.0, -1.0),
    "mul": lambda y, a, b: (b, a),
    "div": lambda y, a, b: (1.0 / b, -y / b),
    "mod": lambda y, a, b: (1.0, -(a / b).apply("floor")),
    "pow": lambda y, a, b: (b * a ** (b - 1.0), y * a.apply("log")),
    "neg": lambda y, a: (-1.0,),
    "exp": lambda y, x: (y,),
    "expm1": lambda y, x: (x.apply("exp"),),
    "exprel": lambda y, x: (x.apply("exprel_slope"),),
    "log": lambda y, x: (1.0 / x,),
    "log10": lambda y, x: (1 / math.log(10) / x,),
    "log1p": lambda y, x: (1.0 / (1.0 + x),),
    "sqrt": lambda y, x: (0.5 / y,),
    "sin": lambda y, x: (x.apply("cos"),),
    "cos": lambda y, x: (-x.apply("sin"),),
    "tan": lambda y, x: (1.0 + y * y,),
    "sinh": lambda y, x: (x.apply("cosh"),),
    "cosh": lambda y, x: (x.apply("sinh"),),
    "tanh": lambda y, x: (1.0 - y * y,),
    "arcsin": lambda y, x: (1.0 / (1.0 - x * x).apply("sqrt"),),
    "arccos": lambda y, x: (-1.0 / (1.0 - x * x).apply("sqrt"),),
    "arctan": lambda y, x: (1.0 / (1.0 + x * x),),
    "abs": lambda y, x: (x.apply("sign"),),
}


class Expression:
    """A node of a graph; arithmetic with it makes further nodes.

    Attributes:
        operation: a key of ``OPERATIONS``, or "constant" or "input".
        arguments: the nodes that it takes.
        content: the number of a constant, the name of an input.
        boolean: whether its value is yes or no.
    """

    __slots__ = ("arguments", "boolean", "content", "graph", "operation", "place")

    def __init__(
        self,
        graph: ExpressionGraph,
        operation: str,
        arguments: tuple[Expression, ...] = (),
        content: Any = None,
        boolean: bool = False,
    ) -> None:
        self.graph, self.operation, self.arguments = graph, operation, arguments
        self.content, self.boolean, self.place = content, boolean, len(graph.nodes)

    def apply(self, operation: str, *others: Expression | float) -> Expression:
        """Return ``operation`` of this node and others."""
        return self.graph.apply(operation, self, *others)

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.graph, self.place)

    def equals(self, number: float) -> bool:
        """Return whether this is a constant of that value."""
        return self.operation == "constant" and self.content == number

    def _swapped(self, operation: str, other: float) -> Expression:
        return self.graph.apply(operation, other, self)

    __add__, __radd__ = partialmethod(apply, "add"), partialmethod(_swapped, "add")
    __sub__, __rsub__ = partialmethod(apply, "sub"), partialmethod(_swapped, "sub")
    __mul__, __rmul__ = partialmethod(apply, "mul"), partialmethod(_swapped, "mul")
    __truediv__, __rtruediv__ = partialmethod(apply, "div"), partialmethod(_swapped, "div")
    __pow__, __neg__ = partialmethod(apply, "pow"), partialmethod(apply, "neg")


class ExpressionGraph:
    """Expressions in the order in which they can be evaluated.

    >>> graph = ExpressionGraph()
    >>> v = graph.input("v")
    >>> decayed = v * graph.constant(-1.0).apply("exp")
    >>> graph.derivative(decayed, v).content
    0.36787944117144233
    >>> graph.evaluate([decayed * v], {"v": torch.tensor([1.0, 2.0], dtype=torch.float64)})
    [tensor([0.3679, 1.4715], dtype=torch.float64)]
    """

    def __init__(self) -> None:
        self.nodes: list[Expression] = []
        self._known: dict[tuple[Any, ...], Expression] = {}
        self._derivatives: dict[tuple[int, int], Expression] = {}
        self._programs: dict[tuple[int, ...], Program] = {}

    def constant(self, value: float) -> Expression:
        """Return a number, or yes or no, that is the same everywhere."""
        boolean = isinstance(value, bool)
        content = value if boolean else float(value)
        # -0.0 equals 0.0, but not as a divisor
        return self._node("constant", (), content, boolean, math.copysign(1.0, content))

    def input(self, name: str, boolean: bool = False) -> Expression:
        """Return a value that is given when the graph is evaluated."""
        return self._node("input", (), name, boolean)

    def apply(self, operation: str, *arguments: Expression | float) -> Expression:
        """Return an operation; what is known already or trivial needs no new node."""
        nodes = tuple(
            argument if isinstance(argument, Expression) else self.constant(argument)
            for argument in arguments
        )
        if operation not in ("and", "or", "not", "number", "where"):
            nodes = tuple(self._number(node) for node in nodes)
        simple = _simplified(operation, nodes)
        if simple is not None:
            return simple
        if all(node.operation == "constant" for node in nodes):
            return self._folded(operation, nodes)
        boolean = operation in BOOLEAN or (operation == "where" and nodes[1].boolean)
        return self._node(operation, nodes, None, boolean)

    def inputs(self, wanted: Collection[Expression]) -> set[str]:
        """Return the names of the inputs on which expressions depend."""
        return {node.content for node in self._reachable(wanted) if node.operation == "input"}

    def derivative(self, node: Expression, seed: Expression) -> Expression:
        """Return the derivative of a node by an input, equation (1); the constant 0 if none."""
        key = node.place, seed.place
        if key not in self._derivatives:
            # in the order of the graph, so that long chains need no deep recursion
            for part in self._reachable([node]):
                if (part.place, seed.place) not in self._derivatives:
                    self._derivatives[part.place, seed.place] = self._chain(part, seed)
        return self._derivatives[key]

    def evaluate(self, wanted: Sequence[Expression], inputs: Mapping[str, Value]) -> list[Any]:
        """Return the values of expressions; equal parts are evaluated once.

        Args:
            wanted: expressions of this graph.
            inputs: float64 tensors, or bool for yes or no, that can be broadcast together.

        Returns:
            A tensor each, or a plain number where it depends on no input.
        """
        key = tuple(node.place for node in wanted)
        if key not in self._programs:
            self._programs[key] = Program(self._reachable(wanted), wanted)
        return self._programs[key](inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        # as a list: a chain of nodes may be longer than Python's stack
        nodes = [
            (
                node.operation,
                tuple(part.place for part in node.arguments),
                node.content,
                node.boolean,
            )
            for node in self.nodes
        ]
        return _rebuilt, (nodes,)

    def _chain(self, node: Expression, seed: Expression) -> Expression:
        if node is seed:
            return self.constant(1.0)
        zero = self.constant(0.0)
        slopes = [self._derivatives[part.place, seed.place] for part in node.arguments]
        if all(slope is zero for slope in slopes):
            return zero
        if node.operation == "where":
            return self.apply("where", node.arguments[0], *slopes[1:])
        if node.operation == "jump":
            fired, after, before = node.arguments
            rest = self.apply("where", fired.apply("ne", 0.0), *slopes[1:])
            return rest if slopes[0] is zero else rest + slopes[0] * (after - before)
        if node.operation not in PARTIALS:
            return zero
        total = zero
        partials = PARTIALS[node.operation](node, *node.arguments)
        for partial, slope in zip(partials, slopes, strict=True):
            if slope is not zero:
                total = total + slope * partial
        return total

    def _node(
        self,
        operation: str,
        arguments: tuple[Expression, ...],
        content: Any = None,
        boolean: bool = False,
        sign: float = 1.0,
    ) -> Expression:
        key = operation, tuple(node.place for node in arguments), content, boolean, sign
        if key not in self._known:
            self._known[key] = Expression(self, operation, arguments, content, boolean)
            self.nodes.append(self._known[key])
        return self._known[key]

    def _number(self, node: Expression) -> Expression:
        return self.apply("number", node) if node.boolean else node

    def _folded(self, operation: str, nodes: Sequence[Expression]) -> Expression:
        values = [
            torch.tensor(node.content, dtype=torch.bool if node.boolean else torch.float64)
            for node in nodes
        ]
        return self.constant(OPERATIONS[operation](*values).item())

    def _reachable(self, wanted: Collection[Expression]) -> list[Expression]:
        found, ahead = set(), [node.place for node in wanted]
        while ahead:
            place = ahead.pop()
            if place not in found:
                found.add(place)
                ahead.extend(node.place for node in self.nodes[place].arguments)
        return [self.nodes[place] for place in sorted(found)]


def _rebuilt(nodes: Sequence[tuple[str, tuple[int, ...], Any, bool]]) -> ExpressionGraph:
    graph = ExpressionGraph()
    for operation, places, content, boolean in nodes:
        sign = math.copysign(1.0, content) if operation == "constant" else 1.0
        arguments = tuple(graph.nodes[place] for place in places)
        graph._node(operation, arguments, content, boolean, sign)
    return graph


def _found(graph: ExpressionGraph, place: int) -> Expression:
    return graph.nodes[place]


class Program:
    """The evaluation of some expressions, in order; what is used up is dropped at once."""

    def __init__(self, nodes: Sequence[Expression], wanted: Sequence[Expression]) -> None:
        self.slots: list[Any] = [
            node.content if node.operation == "constant" else None for node in nodes
        ]
        slot = {node.place: index for index, node in enumerate(nodes)}
        self.inputs = [
            (slot[node.place], node.content) for node in nodes if node.operation == "input"
        ]
        self.wanted = [slot[node.place] for node in wanted]
        last = {
            slot[part.place]: index for index, node in enumerate(nodes) for part in node.arguments
        }
        self.steps = []
        for index, node in enumerate(nodes):
            if node.operation in OPERATIONS:
                taken = [slot[part.place] for part in node.arguments]
                over = [part for part in taken if last[part] == index and part not in self.wanted]
                self.steps.append((OPERATIONS[node.operation], taken, index, over))

    def __call__(self, inputs: Mapping[str, Value]) -> list[Any]:
        """Return the values of the expressions."""
        slots = self.slots.copy()
        for slot, name in self.inputs:
            slots[slot] = inputs[name]
        for operation, taken, result, over in self.steps:
            slots[result] = operation(*[slots[slot] for slot in taken])
            for slot in over:
                slots[slot] = None
        return [slots[slot] for slot in self.wanted]


def _simplified(operation: str, nodes: tuple[Expression, ...]) -> Expression | None:
    """Return what an operation with 0, 1, yes or no comes to; None: it has to be done."""
    first, last = nodes[0], nodes[-1]
    match operation:
        case "add" if first.equals(0):
            return last
        case "add" | "sub" if last.equals(0):
            return first
        case "sub" if first.equals(0):
            return -last
        case "mul" | "div" if first.equals(0):
            return first
        case "mul" if last.equals(0):
            return last
        case "mul" if first.equals(1):
            return last
        case "mul" if first.equals(-1):
            return -last
        case "mul" | "div" | "pow" if last.equals(1):
            return first
        case "mul" | "div" if last.equals(-1):
            return -first
        case "neg" if first.operation == "neg":
            return first.arguments[0]
        case "where" | "jump" if nodes[1] is last:
            return last
        case "where" if first.operation == "constant":
            return nodes[1] if first.content else last
        case "and" if first.operation == "constant":
            return last if first.content else first
        case "and" if last.operation == "constant":
            return first if last.content else last
        case "or" if first.operation == "constant":
            return first if first.content else last
        case "or" if last.operation == "constant":
            return last if last.content else first
        case "number" if not first.boolean:
            return first
    return None
