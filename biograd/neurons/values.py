"""What differs between the neurons of a population: lists, draws, and what is learned.

A learned field stays within its bounds: it is
``initial (high / low)**(sigmoid(factor + b) - sigmoid(b))``
where ``sigmoid(b) = -log(low) / log(high / low)``.  The optimiser moves the factor of every neuron;
it starts at zero, where the field has its initial value to the last bit.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from typing import Any

import torch
from torch import Tensor

from biograd.errors import RecipeError, nearest
from biograd.neurons.neuron import Neuron, PerNeuron, PerNeuronOrZero
from biograd.randomness import generator

DRAWS = {"uniform": ("low", "high"), "normal": ("mean", "deviation"), "gamma": ("shape", "scale")}
"""Distributions that a field can be drawn from, with their arguments."""
WIDEST = 1e9
"""Ratio of the bounds of a learned field."""


def per_neuron(neuron: Neuron) -> tuple[str, ...]:
    """Return the names of the fields that may differ between neurons."""
    return tuple(n for n, kind in _kinds(neuron).items() if kind in _DIFFERING)


_DIFFERING = (PerNeuron, PerNeuronOrZero, Any)


def _kinds(neuron: Neuron) -> dict[str, Any]:
    hints = typing.get_type_hints(type(neuron), include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(neuron)}


def spread(neuron: Neuron, units: int, where: str, stream: str) -> dict[str, Tensor]:
    """Return the values ``[units]``, in float64, of the fields that differ between neurons.

    Args:
        where: opens every message.
        stream: what tells the draws from those of other populations; they are the same in every
            run.

    Raises:
        RecipeError: another number of values, no such distribution, a draw out of range.
    """
    found = {}
    for name in per_neuron(neuron):
        given, key = getattr(neuron, name), f"{where}.{name}"
        if isinstance(given, str):
            zero = _kinds(neuron)[name] == PerNeuronOrZero
            found[name] = drawn(given, units, key, f"{stream}.{name}", zero)
        elif isinstance(given, tuple):
            if len(given) != units:
                raise RecipeError(f"{key}: {len(given)} values for {units} neurons")
            found[name] = torch.tensor(given, dtype=torch.float64)
    return found


def drawn(text: str, units: int, key: str, stream: str, zero: bool = False) -> Tensor:
    """Return values ``[units]`` drawn as a text says; they are the same in every run.

    Args:
        key: of the text, for messages.
        stream: what tells the draws from others.
        zero: whether a value may be zero.

    Raises:
        RecipeError: no such distribution, a draw out of range.
    """
    match = re.fullmatch(r"\s*(\w+)\(([^(),]+),([^(),]+)\)\s*", text)
    if match is None or match[1] not in DRAWS:
        known = ", ".join(f"{kind}({', '.join(names)})" for kind, names in DRAWS.items())
        raise RecipeError(f"{key} = {text!r}: a number, a list, or one of {known}")
    try:
        first, second = float(match[2]), float(match[3])
    except ValueError as error:
        raise RecipeError(f"{key} = {text!r}: its arguments must be two numbers") from error
    draws = _draw(match[1], first, second, units, stream, key)
    least = float(draws.min())
    if not math.isfinite(float(draws.sum())) or least < 0 or not (least or zero):
        raise RecipeError(f"{key} = {text!r}: it draws {least:g}, which is out of range")
    return draws


def _draw(kind: str, first: float, second: float, units: int, name: str, key: str) -> Tensor:
    stream = generator(0, "neurons", name)
    if second < (first if kind == "uniform" else 0) or (kind == "gamma" and first <= 0):
        raise RecipeError(f"{key}: {kind}({first:g}, {second:g}) is no distribution")
    if kind == "uniform":
        share = torch.rand(units, generator=stream, dtype=torch.float64)
        return first + (second - first) * share
    if kind == "normal":
        return first + second * torch.randn(units, generator=stream, dtype=torch.float64)
    return second * torch._standard_gamma(
        torch.full((units,), first, dtype=torch.float64), generator=stream
    )


def check_trainable(neuron: Neuron, where: str) -> None:
    """Refuse bounds of fields that cannot be learned.

    Raises:
        RecipeError: no such field, no bounds around 1, a field that is zero.
    """
    known = per_neuron(neuron)
    for name, ends in neuron.trainable.items():
        key = f"{where}.trainable.{name}"
        if name not in known:
            raise RecipeError(f"{key}: cannot be learned: {nearest(name, known)}")
        if len(ends) != 2 or not 0 < ends[0] < 1 < ends[1] or ends[1] / ends[0] > WIDEST:
            raise RecipeError(
                f"{key} = {list(ends)}: two factors are needed, one below 1 and one above, at most "
                f"a factor of {WIDEST:g} apart"
            )
        given: Any = getattr(neuron, name)
        if not given or (isinstance(given, tuple) and not all(given)):
            raise RecipeError(f"{key}: zero stays zero, whatever its factor")


def bounded(factor: Tensor, initial: float | Tensor, low: float, high: float) -> Tensor:
    """Return the value of a learned field."""
    begin = start(low, high)
    share = torch.sigmoid(factor + begin) - torch.sigmoid(torch.full_like(factor, begin))
    return initial * (high / low) ** share


def start(low: float, high: float) -> float:
    """Return the factor whose ``value`` is the initial one."""
    share = -math.log(low) / math.log(high / low)
    return math.log(share / (1 - share))


def value(factor: Tensor, initial: float | Tensor, low: float, high: float) -> Tensor:
    """Return a learned constant of equations: ``initial low (high / low)**sigmoid(factor)``."""
    return initial * low * (high / low) ** torch.sigmoid(factor)
