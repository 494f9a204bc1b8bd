"""The coefficients of a neuron that is linear between its spikes, measured on plain numbers.

With the state ``x``, the last spikes ``s`` and the currents ``I``::

    x[t] = (A + s[t-1] G) x[t-1] + H s[t-1] + B I[t] + start        u[t] = d . x[t] + sight
    s[t] = 1 if u[t] > 0 else 0

Credit sees ``J s[t-1]`` in place of ``H s[t-1]`` and holds the spikes in front of ``G`` constant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from biograd.neurons.neuron import Neuron, state_of

Number = Any
"""A number, or ``[U]`` where constants differ between neurons."""
ROUNDING = 16
"""Differences of so many units in the last place are taken for rounding."""

SCALES = (-30.0, -1.0, 0.1, 30.0, 1.0)
"""Sizes of the points at which linearity is tested."""


class Coefficients(NamedTuple):
    """Those of a step: by new variable and old variable, or port; 0 where there is none."""

    A: list[list[Number]]
    G: list[list[Number]]
    J: list[Number]
    H: list[Number]
    B: list[list[Number]]
    start: list[Number]
    d: list[Number]
    sight: Number
    names: tuple[str, ...]

    @property
    def gated(self) -> bool:
        """Whether a spike changes how the state goes on."""
        return not all(zero(value) for row in self.G for value in row)

    def without_unread(self) -> Coefficients:
        """Return them without variables that no later value depends on."""
        kept = [
            q
            for q, sight in enumerate(self.d)
            if not zero(sight) or not all(zero(m[p][q]) for m in (self.A, self.G) for p in _of(m))
        ]
        if len(kept) == len(self.d):
            return self
        square = [[[m[p][q] for q in kept] for p in kept] for m in (self.A, self.G)]
        rows = [[m[p] for p in kept] for m in (self.J, self.H, self.B, self.start, self.d)]
        names = tuple(self.names[q] for q in kept)
        found = Coefficients(square[0], square[1], *rows, self.sight, names)  # type: ignore[arg-type,call-arg]
        return found.without_unread()


class SpikeLoop(NamedTuple):
    """By which the spikes of a step come back in the next: ``I[t] + W s[t-1] + b``."""

    weight: Tensor
    bias: Tensor | None

    def rows(self, like: Tensor) -> tuple[Any, Any]:
        """Return what a spike of each neuron adds, ``[U, U]``, and what every step does."""
        start = like.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return self.weight.T.contiguous().numpy(), start.detach().numpy()

    def moved(self, values: Tensor) -> Tensor:
        """Return ``W s``, ``[rows, U]``."""
        return functional.linear(values, self.weight)


def _of(rows: Sequence[Any]) -> range:
    return range(len(rows))


def coefficients(neuron: Neuron, c: Any) -> Coefficients | None:
    """Return the coefficients of a step; None: it is not linear between spikes.

    Linearity is tested by superposition at points of no meaning, of either sign and of several
    sizes, with and without a spike.
    """
    names, ports = neuron.variables, neuron.ports
    count = len(names)
    origin, silent = [0.0] * count, [0.0] * len(ports)

    def at(x: Sequence[float], fired: float, held: float, into: Sequence[float]) -> list[Number]:
        given = SimpleNamespace(**dict(zip(ports, into, strict=True)))
        return list(neuron.advance(state_of(names)(*x), fired, held, given, c, None))

    def distance(x: Sequence[float]) -> Number:
        return neuron.passed(state_of(names)(*x), c, None)

    try:
        base = {held: at(origin, 0.0, held, silent) for held in (0.0, 1.0)}
        by_state = {
            held: _columns([_minus(at(u, 0.0, held, silent), base[held]) for u in _units(count)])
            for held in (0.0, 1.0)
        }
        into = _columns([_minus(at(origin, 0.0, 0.0, u), base[0.0]) for u in _units(len(ports))])
        fired = _minus(at(origin, 1.0, 0.0, silent), base[0.0])
        sight = [distance(u) - distance(origin) for u in _units(count)]
        for scale in SCALES:
            x = [0.37 * scale * (n + 1) for n in range(count)]
            i = [0.61 * scale * (n + 2) for n in range(len(ports))]
            for held in (0.0, 1.0):
                told = [
                    start + _dot(by_state[held][p], x) + _dot(into[p], i) + fired[p]
                    for p, start in enumerate(base[held])
                ]
                if any(_differ(a, b) for a, b in zip(told, at(x, 1.0, held, i), strict=True)):
                    return None
            if _differ(distance(origin) + _dot(sight, x), distance(x)):
                return None
        last = zip(at(x, 0.0, 0.0, i), at(x, 1.0, 1.0, i), strict=True)
        if not neuron.spiking and any(_differ(a, b) for a, b in last):
            return None  # what it passes on comes back as a value, not as a spike
    except (AttributeError, TypeError):  # it calls a function
        return None
    gated = [_minus(one, other) for one, other in zip(by_state[1.0], by_state[0.0], strict=True)]
    taken = [a + b for a, b in zip(fired, _minus(base[1.0], base[0.0]), strict=True)]
    values = (by_state[0.0], gated, fired, taken, into, base[0.0], sight, distance(origin))
    return Coefficients(*values, names)


def _units(count: int) -> list[list[float]]:
    return [[float(k == n) for k in range(count)] for n in range(count)]


def _minus(found: Sequence[Number], base: Sequence[Number]) -> list[Number]:
    return [_difference(a, b) for a, b in zip(found, base, strict=True)]


def _difference(a: Number, b: Number) -> Number:
    """Return ``a - b``, 0 where they differ by rounding alone."""
    gap = a - b
    if not isinstance(gap, Tensor):
        return 0.0 if abs(gap) <= ROUNDING * sys.float_info.epsilon * (abs(a) + abs(b)) else gap
    least = ROUNDING * torch.finfo(gap.dtype).eps * (abs(a) + abs(b))
    gap = torch.where(gap.abs() <= least, torch.zeros_like(gap), gap)
    return gap if bool(gap.any()) else 0.0


def _columns(rows: list[list[Number]]) -> list[list[Number]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _dot(row: Sequence[Number], values: Sequence[float]) -> Number:
    return sum(a * b for a, b in zip(row, values, strict=True))


def _differ(a: Number, b: Number) -> bool:
    gap, size = abs(a - b), 1 + abs(b)
    far = gap > 1e-5 * size
    return bool(far.any() if isinstance(far, Tensor) else far)


def zero(value: Number) -> bool:
    """Return whether a coefficient is missing."""
    return not isinstance(value, Tensor) and value == 0
