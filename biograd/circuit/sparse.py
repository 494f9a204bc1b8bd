"""Products with a matrix of which only the entries that exist are stored.

``y[o] = sum_k w[k] x[source[k]]`` over the connections ``k`` that end at ``o``.  It is linear in
the weights and in the inputs; each derivative is again a product with the matrix, with its
transpose, or ``w[k] = sum over rows of g[target[k]] x[source[k]]``, so that all of them, backward,
forward and of any order, need no dense matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from biograd.errors import CapabilityError
from biograd.simulators.gathered import hear_the_warning

ROWS, PAIRED_ROWS = 64, 128
"""Rows that the processor takes at once: more do not fit into its cache and cost up to twice."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which entries exist, in compressed rows, and the same of the transpose.

    Attributes:
        shape: ``(outputs, inputs)``.
        starts: where the entries of each output begin, ``[outputs + 1]``.
        sources: input of each entry, ``[connections]``.
        turned: starts and targets of the transpose, and the places of its entries.
    """

    shape: tuple[int, int]
    starts: Tensor
    sources: Tensor
    turned: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, connections: Tensor, shape: tuple[int, int]) -> Pattern:
        """Return the pattern of pairs ``(target, source)``, ``[connections, 2]``, in their order.

        Raises:
            CapabilityError: a pair is out of range, out of order or there twice.
        """
        targets, sources = connections.long().unbind(1)
        places = targets * shape[1] + sources
        outside = (connections < 0).any() or (connections >= connections.new_tensor(shape)).any()
        if outside or (places.diff() <= 0).any():
            raise CapabilityError(
                f"connections: not one pair (target, source) each, sorted, below {shape}"
            )
        order = (sources * shape[0] + targets).argsort()
        return cls(
            shape,
            _starts(targets, shape[0]),
            sources.int(),
            (_starts(sources, shape[1]), targets[order].int(), order),
        )

    def matrix(self, weight: Tensor, turned: bool = False) -> Tensor:
        """Return the matrix ``[outputs, inputs]`` of a weight, or its transpose."""
        starts, others, shape = self.starts, self.sources, self.shape
        if turned:
            starts, others, order = self.turned
            weight, shape = weight[order], (shape[1], shape[0])
        hear_the_warning()
        return torch.sparse_csr_tensor(starts, others, weight, shape, check_invariants=False)


def product(weight: Tensor, inputs: Tensor, pattern: Pattern) -> Tensor:
    """Return ``W x``, ``[..., outputs]``.

    Args:
        weight: ``[connections]``.
        inputs: ``[..., inputs]``.
    """
    rows = inputs.reshape(-1, pattern.shape[1]).to(weight.dtype)
    return _product(weight, rows, pattern, False).view(*inputs.shape[:-1], pattern.shape[0])


class _Product(torch.autograd.Function):
    """``W x`` or ``W' x`` for rows of ``x``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, pattern: Pattern, turned: bool) -> Tensor:
        _keep(ctx, weight, rows)
        ctx.pattern, ctx.turned = pattern, turned
        matrix = pattern.matrix(weight, turned)
        found = rows.new_empty(len(rows), matrix.shape[0])
        with torch.autocast(rows.device.type, enabled=False):  # there is no product in 16 bits
            for start, stop in _parts(rows, ROWS):
                found[start:stop] = (matrix @ rows[start:stop].T.contiguous()).T
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight, rows), (gradient,) = ctx.saved_tensors, gradients
        by_weight = by_rows = None
        if gradient is not None and ctx.needs_input_grad[0]:
            ends = (rows, gradient) if ctx.turned else (gradient, rows)
            by_weight = _paired(*ends, ctx.pattern)
        if gradient is not None and ctx.needs_input_grad[1]:
            by_rows = _product(weight, gradient, ctx.pattern, not ctx.turned)
        return by_weight, by_rows, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        weight, rows = ctx.saved_tensors
        parts = []
        if tangents[0] is not None:
            parts.append(_product(tangents[0], rows, ctx.pattern, ctx.turned))
        if tangents[1] is not None:
            parts.append(_product(weight, tangents[1], ctx.pattern, ctx.turned))
        return sum(parts[1:], parts[0])


class _Paired(torch.autograd.Function):
    """``sum over rows of g[target[k]] x[source[k]]`` for every connection ``k``."""

    @staticmethod
    def forward(ctx: Any, ends: Tensor, rows: Tensor, pattern: Pattern) -> Tensor:
        _keep(ctx, ends, rows)
        ctx.pattern = pattern
        found = pattern.matrix(rows.new_zeros(len(pattern.sources)))
        with torch.autocast(rows.device.type, enabled=False):
            for start, stop in _parts(rows, PAIRED_ROWS):
                found = torch.sparse.sampled_addmm(
                    found, ends[start:stop].T.contiguous(), rows[start:stop].contiguous()
                )
        return found.values()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (ends, rows), (gradient,), pattern = ctx.saved_tensors, gradients, ctx.pattern
        by_ends = by_rows = None
        if gradient is not None and ctx.needs_input_grad[0]:
            by_ends = _product(gradient, rows, pattern, False)
        if gradient is not None and ctx.needs_input_grad[1]:
            by_rows = _product(gradient, ends, pattern, True)
        return by_ends, by_rows, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        ends, rows = ctx.saved_tensors
        parts = []
        if tangents[0] is not None:
            parts.append(_paired(tangents[0], rows, ctx.pattern))
        if tangents[1] is not None:
            parts.append(_paired(ends, tangents[1], ctx.pattern))
        return sum(parts[1:], parts[0])


def _product(weight: Tensor, rows: Tensor, pattern: Pattern, turned: bool) -> Tensor:
    found: Tensor = _Product.apply(weight, rows, pattern, turned)
    return found


def _paired(ends: Tensor, rows: Tensor, pattern: Pattern) -> Tensor:
    found: Tensor = _Paired.apply(ends, rows, pattern)
    return found


def _keep(ctx: Any, *tensors: Tensor) -> None:
    """Keep what backward and forward derivatives need; a missing tangent stays missing."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _starts(ends: Tensor, count: int) -> Tensor:
    """Return where the entries of each of ``count`` rows begin."""
    starts = torch.zeros(count + 1, dtype=torch.int32, device=ends.device)
    starts[1:] = torch.bincount(ends, minlength=count).cumsum(0)
    return starts


def _parts(rows: Tensor, size: int) -> list[tuple[int, int]]:
    """Return the bounds of the parts in which rows are taken; an accelerator takes all."""
    size = size if rows.device.type == "cpu" else max(1, len(rows))
    return [(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]


def drawn(shape: tuple[int, int], count: int, stream: torch.Generator) -> Tensor:
    """Draw ``count`` pairs ``(target, source)`` without repetition, sorted, ``[count, 2]``."""
    size = shape[0] * shape[1]
    if 2 * count > size:
        places = torch.randperm(size, generator=stream)[:count].sort().values
    else:
        found = torch.empty(0, dtype=torch.long)
        while len(found) < count:
            more = torch.randint(size, (count - len(found),), generator=stream)
            found = torch.cat((found, more)).unique()
        places = found
    return torch.stack((places // shape[1], places % shape[1]), 1)
