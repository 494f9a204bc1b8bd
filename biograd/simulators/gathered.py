"""Products with inputs that are mostly zero, as spikes are: rows are gathered, not multiplied.

``y[r] = sum_k x[r, k] W[:, k] + b`` over the ``k`` with ``x[r, k] != 0`` alone, and the weights'
gradient ``dW[:, k] = sum_r x[r, k] g[r]`` over the same pairs.  Whether that pays is measured in
every call: the inputs are counted.  Credit to the inputs is a product as ever, for it is dense.

Why by numba, and else by a compressed matrix of torch: 2560 x 784 inputs, 2 % of them spikes, to
512 units take 15 ms each way as products, 4 and 2.5 ms by numba (2.2 ms to find the spikes), 9 and
5 ms by ``torch.sparse``; ``embedding_bag`` takes 7 and 8 ms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.process.compiled import KERNEL_DTYPES, available, compiled, divided

LEAST = 20_000_000
"""Multiplications below which finding spikes costs more than it saves."""
MOST, MOST_IN_TORCH = 0.1, 0.05
"""Share of inputs that are not zero up to which gathering pays, compiled and in torch."""
PROBED = 32
"""Rows that are looked at first, so that dense inputs cost nothing."""


class GatheringLinear(nn.Linear):
    """A linear layer that gathers rows of its weight where its inputs are mostly zero."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the currents ``[..., outputs]`` for ``[..., inputs]``."""
        return gathered(input, self.weight, self.bias)


class Gathering(NamedTuple):
    """Inputs that are not zero, by row: ``places[starts[r]:ends[r]]``, and their values."""

    starts: Any
    ends: Any
    places: Any
    values: Any


Found = Gathering | tuple[Tensor, Tensor]
"""Gathering, or, without numba, the inputs ``[R, inputs]`` and their transpose, compressed."""


def gathered(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``W x + b``, ``[..., outputs]``.

    Args:
        inputs: ``[..., inputs]``.
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
    """
    found = _found(inputs, weight) if _considered(inputs, weight) else None
    if found is None:
        return functional.linear(inputs, weight, bias)
    return cast(Tensor, _Gathered.apply(inputs, weight, bias, found))


def _considered(inputs: Tensor, weight: Tensor) -> bool:
    """Return whether the product is large, and one of plain matrices on the processor."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype
        and inputs.dtype in KERNEL_DTYPES
        and inputs.numel() * len(weight) >= LEAST
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _found(inputs: Tensor, weight: Tensor) -> Found | None:
    """Return the inputs that are not zero; None: they are too many."""
    rows = inputs.detach().reshape(-1, weight.shape[1])
    most = MOST if available() else MOST_IN_TORCH
    probed = rows[:: max(1, len(rows) // PROBED)]
    if int(torch.count_nonzero(probed)) > 2 * most * probed.numel():
        return None
    return _events(rows) if available() else _compressed(rows)


def _events(rows: Tensor) -> Gathering | None:
    count, units = rows.shape
    each = int(MOST * units) + 1
    starts, ends = numpy.empty(count, numpy.int64), numpy.empty(count, numpy.int64)
    places = numpy.empty(count * each + units, numpy.int32)
    given = rows.contiguous().numpy()
    values = numpy.empty(len(places), given.dtype)
    # In one thread: each needs a room of its own for what it finds.
    enough = _finder()(given, starts, ends, places, values, count * each)
    return Gathering(starts, ends, places, values) if enough else None


def _compressed(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    at, places = rows.nonzero(as_tuple=True)
    if len(at) > MOST_IN_TORCH * rows.numel():
        return None
    hear_the_warning()
    values, order = rows[at, places], places.argsort(stable=True)
    turned = (rows.shape[1], rows.shape[0])
    return (
        _matrix(at, places, values, (rows.shape[0], rows.shape[1])),
        _matrix(places[order], at[order], values[order], turned),
    )


@cache
def hear_the_warning() -> None:
    """Let torch say once, to nobody, that its compressed matrices are young."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1))


def _matrix(at: Tensor, places: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    starts = functional.pad(torch.bincount(at, minlength=shape[0]).cumsum(0), (1, 0))
    return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, found: Found
    ) -> Tensor:
        ctx.found = found
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, weight)
        ctx.save_for_forward(inputs, weight)
        return _response(found, inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inputs, weight), (gradient,) = ctx.saved_tensors, gradients
        if gradient is None:
            return None, None, None, None
        wanted, flat = ctx.needs_input_grad, gradient.flatten(0, -2)
        by_weight = None
        if wanted[1] and torch.is_grad_enabled():  # a derivative of it is asked for
            by_weight = flat.T @ inputs.flatten(0, -2)
        elif wanted[1]:
            by_weight = _by_weight(ctx.found, flat, weight)
        return (
            gradient @ weight if wanted[0] else None,
            by_weight,
            flat.sum(0) if wanted[2] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        inputs, weight = ctx.saved_tensors
        moved, by_weight, by_bias, _ = tangents
        parts = [] if moved is None else [functional.linear(moved, weight)]
        if by_weight is not None:
            parts.append(_response(ctx.found, inputs, by_weight, None))
        if by_bias is not None:
            parts.append(by_bias.expand(*inputs.shape[:-1], -1))
        return sum(parts[1:], parts[0]) if len(parts) > 1 else parts[0].clone()


def _response(found: Found, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    columns = weight.detach().T.contiguous()
    if not isinstance(found, Gathering):
        response = found[0] @ columns
        response = response if bias is None else response.add_(bias.detach())
    else:
        response = inputs.new_empty(inputs.numel() // len(columns), len(weight))
        start = (weight.new_zeros(len(weight)) if bias is None else bias.detach()).numpy()
        arrays = (columns.numpy(), start, response.detach().numpy())
        divided(_adder(), len(response), response.numel(), *found, *arrays)
    return response.view(*inputs.shape[:-1], len(weight))


def _by_weight(found: Found, gradient: Tensor, weight: Tensor) -> Tensor:
    if not isinstance(found, Gathering):
        return (found[1] @ gradient).T.contiguous()
    columns = gradient.new_zeros(weight.shape[1], weight.shape[0])
    arrays = (gradient.contiguous().numpy(), columns.numpy())
    divided(_collector(), len(weight), gradient.numel(), *found, *arrays)
    return columns.T.contiguous()


@cache
def _finder() -> Callable[..., Any]:
    def run(rows, starts, ends, places, values, most):  # type: ignore[no-untyped-def]
        found, (count, units) = 0, rows.shape
        for r in range(count):
            row, starts[r] = rows[r], found
            if found > most:
                return False
            for begin in range(0, units, 16):
                end = min(begin + 16, units)
                some = False
                for u in range(begin, end):
                    some |= row[u] != 0
                if some:
                    for u in range(begin, end):
                        places[found], values[found] = u, row[u]
                        found += row[u] != 0
            ends[r] = found
        return found <= most

    return compiled(run)


@cache
def _adder() -> Callable[..., Any]:
    """Return the loop over rows ``first`` to ``end``; four events at once, for the cache."""

    def run(first, end, starts, ends, places, values, columns, bias, out):  # type: ignore[no-untyped-def]
        units = out.shape[1]
        for r in range(first, end):
            row, k, stop = out[r], starts[r], ends[r]
            row[:] = bias
            while k + 4 <= stop:
                a, b = columns[places[k]], columns[places[k + 1]]
                c, d = columns[places[k + 2]], columns[places[k + 3]]
                p, q, s, t = values[k], values[k + 1], values[k + 2], values[k + 3]
                for u in range(units):
                    row[u] += p * a[u] + q * b[u] + s * c[u] + t * d[u]
                k += 4
            while k < stop:
                a, p = columns[places[k]], values[k]
                for u in range(units):
                    row[u] += p * a[u]
                k += 1

    return compiled(run)


@cache
def _collector() -> Callable[..., Any]:
    """Return the loop over units ``first`` to ``end``: no two threads write the same sum."""

    def run(first, end, starts, ends, places, values, gradient, columns):  # type: ignore[no-untyped-def]
        for r in range(len(starts)):
            row = gradient[r, first:end]
            for k in range(starts[r], ends[r]):
                into, p = columns[places[k], first:end], values[k]
                for u in range(end - first):
                    into[u] += p * row[u]

    return compiled(run)
