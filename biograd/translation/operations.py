"""What expressions are made of: arithmetic, comparisons and functions of numbers and tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from biograd.contracts.credit_paths import differentiated

Value = Tensor | float
"""What an expression is worth: a tensor, or a number that is the same everywhere."""

SERIES = 0.25
"""Below this ``exprel`` is summed as a series; 14 terms leave an error below 1e-19."""
INVERSE_FACTORIALS = tuple(1 / math.factorial(power + 1) for power in range(14))


def _where(condition: Tensor, chosen: Value, other: Value) -> Tensor:
    # of two numbers torch would make a tensor in its default precision
    if not isinstance(chosen, Tensor):
        kind = torch.bool if isinstance(chosen, bool) else torch.float64
        chosen = torch.tensor(chosen, dtype=kind)
    return torch.where(condition, chosen, other)


def _jump(fired: Tensor, after: Value, before: Value) -> Tensor:
    # bit for bit what is chosen; the derivative by the spike is the difference that it makes
    one, other = (torch.as_tensor(value, dtype=fired.dtype) for value in (after, before))
    chosen = torch.where(fired != 0, one, other)
    if not differentiated(fired):
        return chosen
    return chosen + (fired - fired.detach()) * (one - other).detach()


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def exprel(x: Tensor) -> Tensor:
    """Return ``(exp(x) - 1) / x``, 1 at zero, with correct derivatives.

    >>> exprel(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    tensor([0.6321, 1.0000, 1.7183], dtype=torch.float64)
    """
    near = x.abs() < SERIES
    # each branch receives only what it can take, so that no NaN enters a derivative
    far = torch.where(near, 1.0, x)
    series = _horner(torch.where(near, x, 0.0), INVERSE_FACTORIALS)
    return torch.where(near, series, torch.expm1(far) / far)


def exprel_slope(x: Tensor) -> Tensor:
    """Return the derivative of ``exprel``, ``(exp(x) - exprel(x)) / x``, 1/2 at zero."""
    near = x.abs() < SERIES
    far = torch.where(near, 1.0, x)
    coefficients = [power * value for power, value in enumerate(INVERSE_FACTORIALS)][1:]
    series = _horner(torch.where(near, x, 0.0), coefficients)
    return torch.where(near, series, (torch.exp(far) - torch.expm1(far) / far) / far)


BOOLEAN: dict[str, Callable[..., Any]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": torch.logical_not,
}
"""Operations that answer yes or no."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    **BOOLEAN,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "where": _where,
    "jump": _jump,
    "number": lambda condition: condition.to(torch.float64),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "exprel": exprel,
    "exprel_slope": exprel_slope,
    "log": torch.log,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "arcsin": torch.arcsin,
    "arccos": torch.arccos,
    "arctan": torch.arctan,
    "abs": torch.abs,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
}

FUNCTIONS_OF_ONE = frozenset(
    {*OPERATIONS}
    - {*BOOLEAN, "add", "sub", "mul", "div", "floordiv", "mod", "pow", "neg", "where", "jump"}
    - {"number", "exprel_slope"}
)
"""Functions of one number."""
