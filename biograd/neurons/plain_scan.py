"""Linear neurons over a whole trial in operations of torch, in place and without a graph.

The same three loops as in ``fused_scan``, for every device and type of number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from biograd.contracts.credit_paths import starts
from biograd.neurons.coefficients import Coefficients, Number, zero


def forward(
    k: Coefficients, into: Sequence[Tensor], steps: int, spiking: bool, keep: str
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Return what is passed on, distances, states, ``[rows, steps, *U]``, and the last states.

    Args:
        into: currents by port, ``[rows, steps or 1, *U]``.
        keep: "nothing", "distance", or "states" as well.
    """
    first, count = into[0], len(k.d)
    passed = first.new_empty((len(first), steps, *first.shape[2:]))
    distance = torch.empty_like(passed) if keep != "nothing" else None
    states = [torch.empty_like(passed) for _ in k.d] if keep == "states" else []
    x = [torch.zeros_like(first[:, 0]) for _ in k.d]
    new = [torch.empty_like(values) for values in x]
    away, last = torch.empty_like(first[:, 0]), None
    for t in range(steps):
        for p in range(count):
            total = _decayed(k, p, x, new, last)
            for port, values in enumerate(into):
                add(total, values[:, t if values.shape[1] > 1 else 0], k.B[p][port])
            if last is not None:
                add(total, last, k.H[p])
            if not zero(k.start[p]):
                total.add_(k.start[p])
        x, new = new, x
        far = away if distance is None else distance[:, t]
        _seen(k, x, far)
        last = passed[:, t]
        if spiking:
            torch.gt(far, 0, out=last)
        else:
            last.copy_(far)
            last = None
        for course, value in zip(states, x, strict=False):
            course[:, t] = value
    return passed, distance, states, x


def _decayed(
    k: Coefficients, p: int, x: list[Tensor], new: list[Tensor], last: Tensor | None
) -> Tensor:
    """Return ``(A + s G) x`` for one variable, in its new place."""
    total = _scaled(new[p], x[p], k.A[p][p])
    for q, old in enumerate(x):
        if q != p:
            add(total, old, k.A[p][q])
        if last is not None:
            add(total, old, k.G[p][q], last)
    return total


def _scaled(out: Tensor, values: Tensor, factor: Number) -> Tensor:
    """Return ``factor values`` in ``out``; what stands there may be anything."""
    return out.zero_() if zero(factor) else torch.mul(values, factor, out=out)


def _sum(out: Tensor, terms: Sequence[tuple[Tensor, Number]]) -> None:
    """Put the sum of values times factors into ``out``; what stands there may be anything."""
    there = [(values, factor) for values, factor in terms if not zero(factor)]
    _scaled(out, *(there[0] if there else terms[0]))
    for values, factor in there[1:]:
        add(out, values, factor)


def _seen(k: Coefficients, x: Sequence[Tensor], out: Tensor) -> None:
    """Put the distance to the threshold into ``out``."""
    only = [p for p, factor in enumerate(k.d) if not zero(factor)]
    if len(only) == 1 and not isinstance(k.d[only[0]], Tensor) and k.d[only[0]] == 1:
        torch.add(x[only[0]], k.sight, out=out)
        return
    _sum(out, list(zip(x, k.d, strict=True)))
    if not zero(k.sight):
        out.add_(k.sight)


def back(
    k: Coefficients,
    gradient: Tensor,
    passed: Tensor,
    slopes: Tensor | None,
    window: int | None,
    constant: Sequence[bool],
    keep: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``dL/dx`` of every step with ``dL/d distance`` (if kept), and ``dL/dI`` by port.

    Args:
        gradient: ``dL/d passed``, ``[rows, steps, *U]``.
        slopes: derivatives of what is passed on; None: all are 1.
        constant: by port, whether the current was the same in every step.
    """
    count, steps = len(k.d), gradient.shape[1]
    lam = [torch.zeros_like(gradient[:, 0]) for _ in k.d]
    new, credit = [torch.empty_like(values) for values in lam], torch.empty_like(lam[0])
    found = [
        torch.zeros_like(gradient[:, :1]) if one else torch.empty_like(gradient) for one in constant
    ]
    kept = [torch.empty_like(gradient) for _ in range(count + 1)] if keep else []
    for t in reversed(range(steps)):
        if t + 1 < steps and starts(t + 1, window):
            for values in lam:
                values.zero_()
        if slopes is None:
            credit.copy_(gradient[:, t])
        elif all(map(zero, k.J)):
            torch.mul(gradient[:, t], slopes[:, t], out=credit)
        else:
            credit.copy_(gradient[:, t])
            for p in range(count):
                add(credit, lam[p], k.J[p])
            credit.mul_(slopes[:, t])
        for q in range(count):
            total = _scaled(new[q], lam[q], k.A[q][q])
            for p, values in enumerate(lam):
                if p != q:
                    add(total, values, k.A[p][q])
                if slopes is not None:
                    add(total, values, k.G[p][q], passed[:, t])
            add(total, credit, k.d[q])
        lam, new = new, lam
        for port, into in enumerate(found):
            terms = [(values, k.B[p][port]) for p, values in enumerate(lam)]
            if constant[port]:
                for values, factor in terms:
                    add(into[:, 0], values, factor)
            else:
                _sum(into[:, t], terms)
        for course, now in zip(kept, (*lam, credit), strict=False):
            course[:, t] = now
    return kept, found


def tangent(
    k: Coefficients,
    moved: Sequence[Tensor | None],
    passed: Tensor,
    slopes: Tensor | None,
    window: int | None,
) -> Tensor:
    """Return the tangent of what is passed on for those of the currents, by port."""
    count, steps = len(k.d), passed.shape[1]
    x = [torch.zeros_like(passed[:, 0]) for _ in k.d]
    new = [torch.empty_like(values) for values in x]
    out, found = torch.zeros_like(passed[:, 0]), torch.empty_like(passed)
    for t in range(steps):
        if starts(t, window):
            for values in (*x, out):
                values.zero_()
        for p in range(count):
            total = _decayed(k, p, x, new, passed[:, t - 1] if t and slopes is not None else None)
            if slopes is not None:
                add(total, out, k.J[p])
            for port, given in enumerate(moved):
                if given is not None:
                    add(total, given[:, t if given.shape[1] > 1 else 0], k.B[p][port])
        x, new = new, x
        _seen(k._replace(sight=0.0), x, out)
        if slopes is not None:
            out.mul_(slopes[:, t])
        found[:, t] = out
    return found


def add(total: Tensor, values: Tensor, factor: Number, gate: Tensor | None = None) -> None:
    """Add ``factor values gate`` in place."""
    if zero(factor):
        return
    if isinstance(factor, Tensor):
        total.addcmul_(values if gate is None else values * gate, factor)
    elif gate is None:
        total.add_(values, alpha=factor)
    else:
        total.addcmul_(values, gate, value=factor)
