"""What a neuron is: data, and one step of plain arithmetic.

``Neuron.advance`` is the only place with a neuron's equations.  It is called on three kinds of
values, and what follows from it needs no word of its own in any neuron:

=========  =========================================================
tensors    a step in torch, with autograd's derivatives
symbols    the text that Brian2 compiles (``neurons.symbols``)
numbers    the coefficients of the scan over time (``neurons.scan``)
=========  =========================================================

It receives the spikes of the step before twice: ``held``, through which no credit passes, and
``fired``, through which it does.  Which one a statement reads is what the neuron says about credit:
the reset of a potential reads ``held``, an adaptation reads ``fired``.

Shapes: ``rows`` copies x examples, ``U`` units.
"""

from __future__ import annotations

import dataclasses
import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from biograd.checking import Checked, NotNegative, Positive
from biograd.errors import CapabilityError, RecipeError
from biograd.neurons.surrogate import SURROGATES, Derivative, spike

PerNeuron = Positive | str | tuple[Positive, ...]
"""One value for all neurons of a population, one for each, or a draw: ``"uniform(5, 20)"``."""
PerNeuronOrZero = NotNegative | str | tuple[NotNegative, ...]
State = Any
"""A named tuple of a neuron's variables, each ``[rows, *U]``."""
SnnTorchStep = Callable[[State, Tensor, Tensor, Any], tuple[State, Tensor]]
"""State, last spikes, current and constants to the new state and what is passed on."""


@cache
def state_of(names: tuple[str, ...]) -> Any:
    """Return the named tuple of a neuron's variables."""
    return namedtuple("State", names)


@dataclasses.dataclass(frozen=True)
class Neuron(Checked):
    """One kind of neuron; its fields are data and nothing else is.

    A field of the kind ``PerNeuron`` may differ between the neurons of a population, and may be
    learned.

    Attributes:
        kind: its name in recipes; empty: that of its class.
        trainable: fields that every neuron learns, each with its bounds as factors of the value
            that it starts from: ``{ time_constant_ms = [0.2, 5] }``.
    """

    kind: str = dataclasses.field(default="", kw_only=True)
    trainable: Mapping[str, tuple[Positive, ...]] = dataclasses.field(
        default_factory=dict, kw_only=True
    )

    name: ClassVar[str] = ""
    """What a recipe calls it, as in the registry."""

    ports: ClassVar[tuple[str, ...]] = ("I",)
    """What receives a current (a receptor, a compartment); the first, where none is named."""
    spiking: ClassVar[bool] = True
    """Whether it passes on spikes, where ``passed > 0``, or ``passed`` itself."""

    def __init_subclass__(cls) -> None:
        """Let no class inherit a form in NIR, which would lack what the class adds."""
        super().__init_subclass__()
        if "nir" not in vars(cls):
            setattr(cls, "nir", Neuron.nir)  # noqa: B010 - mypy takes no method as a value

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind and self.kind != self.name and "name" in vars(type(self)):
            raise RecipeError(f"{self.noun}: kind = {self.kind!r}: it is {self.name!r}")
        object.__setattr__(self, "kind", self.kind or self.name)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables of the state."""
        raise NotImplementedError

    @property
    def noun(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def constants(self, p: Any, dt: Any, f: Any) -> dict[str, Any]:
        """Return what a step needs.

        Args:
            p: the fields; one that differs between neurons is ``[U]``.
            dt: length of a step in milliseconds.
            f: functions on such values (``exp``).
        """
        raise NotImplementedError

    def begin(self, like: Tensor) -> State:
        """Return the state in which a trial begins, each ``[rows, *U]`` like ``like``."""
        return state_of(self.variables)(*[torch.zeros_like(like)] * len(self.variables))

    def advance(self, x: State, fired: Any, held: Any, into: Any, c: Any, f: Any) -> State:
        """Return the state after a step: arithmetic and functions of ``f`` only.

        Args:
            x: the state before.
            fired: the spikes of the step before, with credit.
            held: the same, without credit.
            into: the currents of this step, by port.
            c: the constants.
            f: ``exp``, ``tanh``, ``relu``, ``sigmoid``, ``gelu``, ``where(y, a, b)`` (a if y > 0).
        """
        raise NotImplementedError

    def passed(self, x: State, c: Any, f: Any) -> Any:
        """Return the distance to the threshold, or what a graded neuron passes on."""
        raise NotImplementedError

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the derivative of what is passed on by ``passed``."""
        return torch.ones_like(distance)

    def snntorch(self, c: Any, derivative: Derivative) -> SnnTorchStep:
        """Return the step as snnTorch takes it.

        Raises:
            CapabilityError: snnTorch has no such neuron.
        """
        raise CapabilityError(
            f"{self.noun}: snnTorch has no such neuron: take network.substrate = 'torch' or "
            "'brian2'"
        )

    def nir(self, p: Any) -> Mapping[str, Any]:
        """Return the neuron in the terms of NIR, as fields of ``interchange.nir_neuron``.

        Args:
            p: the fields, learned ones as they are; one that differs between neurons is ``[U]``.

        Raises:
            CapabilityError: NIR has no such neuron.
        """
        raise CapabilityError(f"{self.noun}: NIR has no node for such a neuron")


@dataclasses.dataclass(frozen=True)
class Spiking(Neuron):
    """A neuron with a threshold.

    Attributes:
        surrogate: name of what stands in for the derivative of a spike, of steepness ``slope``.
    """

    surrogate: str = "fast_sigmoid"
    slope: Positive = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        SURROGATES.find(self.surrogate, "neuron.surrogate")

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the surrogate derivative of a spike by its distance to the threshold."""
        return SURROGATES[self.surrogate](distance, self.slope)


class Functions:
    """The functions of a step on tensors."""

    exp, tanh, relu, sigmoid = torch.exp, torch.tanh, torch.relu, torch.sigmoid
    gelu = staticmethod(nn.functional.gelu)

    @staticmethod
    def where(yes: Tensor, a: Any, b: Any) -> Tensor:
        """Return ``a`` where ``yes > 0``, else ``b``."""
        return torch.where(yes > 0, a, b)


def exponential(value: Any) -> Any:
    """Return ``exp`` of a number or a tensor."""
    return torch.exp(value) if isinstance(value, Tensor) else math.exp(value)


def constants_of(neuron: Neuron, dt_ms: float, values: Mapping[str, Any]) -> Any:
    """Return the constants of a step: numbers, or ``[U]`` where ``values`` are.

    Args:
        values: of the fields that differ between neurons or are learned.
    """
    fields = {field.name: getattr(neuron, field.name) for field in dataclasses.fields(neuron)}
    p = SimpleNamespace(**fields | dict(values))
    return SimpleNamespace(**neuron.constants(p, dt_ms, SimpleNamespace(exp=exponential)))


def step(
    neuron: Neuron,
    c: Any,
    x: State,
    spikes: Tensor,
    into: Mapping[str, Tensor],
    derivative: Derivative | None = None,
) -> tuple[State, Tensor]:
    """Return the state after one step and what is passed on, ``[rows, *U]``; differentiable.

    Args:
        c: the constants (``constants_of``).
        spikes: of the step before.
        into: currents by port.
        derivative: stands in for the neuron's surrogate.
    """
    given = SimpleNamespace(**into)
    if not neuron.spiking:
        x = neuron.advance(x, spikes, spikes, given, c, Functions)
        return x, neuron.passed(x, c, Functions)
    x = neuron.advance(x, spikes, spikes.detach(), given, c, Functions)
    passed = neuron.passed(x, c, Functions)
    return x, spike(passed, derivative=derivative or neuron.derivative)


def check_known(neuron: Neuron, kind: type[Neuron], where: str) -> None:
    """Refuse a neuron with fields of its own where only those of ``kind`` are read.

    Raises:
        CapabilityError: a field that would be ignored.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(neuron):
        if field.name not in known:
            raise CapabilityError(
                f"neuron.{field.name} = {getattr(neuron, field.name)!r}: {where} reads the fields "
                f"of {kind.__name__} alone"
            )
