"""A neuron's step as Brian2 text, traced from ``Neuron.advance``: nobody writes it by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from biograd.errors import CapabilityError
from biograd.neurons.neuron import Neuron, state_of

SPIKED = "spiked"
"""The variable that holds the spikes of the step before."""
OUTPUT = "passed_on"
"""What a neuron without a threshold passed on in the step before."""


class Text(NamedTuple):
    """What Brian2 needs of a neuron.

    Attributes:
        update: statements of a step.
        threshold: condition of a spike; "": there is none.
        output: expression that is passed on by a neuron without a threshold.
        constants: names that the texts read.
    """

    update: str
    threshold: str
    output: str
    constants: tuple[str, ...]


class Symbol:
    """Arithmetic that writes itself down, operation by operation."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __neg__(self) -> Symbol:
        return Symbol(f"(-{self.text})")


def _text(value: Any) -> str:
    return value.text if isinstance(value, Symbol) else repr(float(value))


def _operator(sign: str, swapped: bool) -> Callable[[Any, Any], Symbol]:
    def write(a: Any, b: Any) -> Symbol:
        left, right = (b, a) if swapped else (a, b)
        return Symbol(f"({_text(left)} {sign} {_text(right)})")

    return write


_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}
for _name, _sign in _OPERATORS.items():
    setattr(Symbol, f"__{_name}__", _operator(_sign, swapped=False))
    setattr(Symbol, f"__r{_name}__", _operator(_sign, swapped=True))


def _call(name: str) -> Callable[[Symbol], Symbol]:
    return lambda x: Symbol(f"{name}({x.text})")


def _gelu(_x: Symbol) -> Symbol:
    raise CapabilityError(
        "network.activation = 'gelu': Brian2 has no error function: take 'relu', 'tanh' or "
        "'sigmoid', or network.substrate = 'torch'"
    )


def _where(yes: Symbol, a: Any, b: Any) -> Symbol:
    over = f"int({yes.text} > 0)"
    return Symbol(f"({over} * {_text(a)} + (1 - {over}) * {_text(b)})")


FUNCTIONS = SimpleNamespace(
    exp=_call("exp"),
    tanh=_call("tanh"),
    relu=lambda x: Symbol(f"clip({x.text}, 0, 1e300)"),
    sigmoid=lambda x: Symbol(f"(1.0 / (1.0 + exp({(-x).text})))"),
    gelu=_gelu,
    where=_where,
)
"""The functions of a step on symbols."""


class _Read:
    """Constants as symbols; remembers which were read, so that text and namespace agree."""

    def __init__(self, known: Any) -> None:
        self.known = vars(known)
        self.seen: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        value = self.known[name]
        if isinstance(value, float) and not value:
            return 0.0  # a term that is not there
        self.seen[name] = None
        return Symbol(name)


def write(neuron: Neuron, constants: Any) -> Text:
    """Return a neuron's step as Brian2 text.

    Args:
        constants: those of a step (``constants_of``); of them, the names.

    Raises:
        CapabilityError: Brian2 lacks a function that the step calls.
    """
    names, c = neuron.variables, _Read(constants)
    x = state_of(names)(*map(Symbol, names))
    last = Symbol(SPIKED if neuron.spiking else OUTPUT)
    into = SimpleNamespace(**{port: Symbol(port) for port in neuron.ports})
    new = neuron.advance(x, last, last, into, c, FUNCTIONS)
    passed = neuron.passed(state_of(names)(*map(Symbol, names)), c, FUNCTIONS)
    lines = [f"new_{name} = {_text(value)}" for name, value in zip(names, new, strict=True)]
    lines += [f"{name} = new_{name}" for name in names]
    if neuron.spiking:
        lines.append(f"{SPIKED} = 0")
    threshold = f"{_text(passed)} > 0" if neuron.spiking else ""
    output = "" if neuron.spiking else _text(passed)
    return Text("\n".join(lines), threshold, output, tuple(c.seen))
