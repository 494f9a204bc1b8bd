"""Linear neurons over a whole trial in operations of torch, in place and without a graph.

The same three loops as in ``fused_scan``, for every device and type of number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from biograd.contracts.credit_paths import starts
from biograd.neurons.coefficients import Coefficients, Number, SpikeLoop, zero


def forward(
    k: Coefficients,
    into: Sequence[Tensor],
    steps: int,
    spiking: bool,
    keep: str,
    loop: SpikeLoop | None = None,
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Return what is passed on, distances, states, ``[rows, steps, *U]``, and the last states.

    Args:
        into: currents by port, ``[rows, steps or 1, *U]``.
        keep: "nothing", "distance", or "states" as well.
        loop: by which the spikes of a step come back in the next.
    """
    first = into[0]
    passed = first.new_empty((len(first), steps, *first.shape[2:]))
    distance = torch.empty_like(passed) if keep != "nothing" else None
    states = [torch.empty_like(passed) for _ in k.d] if keep == "states" else []
    x = [torch.zeros_like(first[:, 0]) for _ in k.d]
    new = [torch.empty_like(values) for values in x]
    away, last, rows = torch.empty_like(first[:, 0]), None, _rows(k, k.H, first)
    seen, level = _Seen.of(k, first), torch.zeros((), dtype=first.dtype, device=first.device)
    for t in range(steps):
        now = [values[:, t if values.shape[1] > 1 else 0] for values in into]
        if loop is not None:
            now[0] = now[0] + loop.moved(torch.zeros_like(now[0]) if last is None else last)
            now[0] = now[0] if loop.bias is None else now[0].add_(loop.bias)
        for row, total in zip(rows, new, strict=True):
            row.decay(x, total, last)
            for port, factor in row.ports:
                add(total, now[port], factor)
            if last is not None:
                add(total, last, row.taken)
            if row.begins:
                total.add_(row.start)
        x, new = new, x
        far = away if distance is None else distance[:, t]
        seen.put(x, far)
        last = passed[:, t]
        if spiking:
            torch.gt(far, level, out=last)
        else:
            last.copy_(far)
            last = None
        for course, value in zip(states, x, strict=False):
            course[:, t] = value
    return passed, distance, states, x


class _Row(NamedTuple):
    """What makes the next value of variable ``p``; what is zero is not looked at in every step."""

    p: int
    own: Number
    others: list[tuple[int, Number]]
    gated: list[tuple[int, Number]]
    ports: list[tuple[int, Number]]
    taken: Number
    start: Number
    begins: bool

    def decay(self, x: Sequence[Tensor], out: Tensor, last: Tensor | None) -> None:
        """Put ``(A + s G) x`` for the variable into ``out``."""
        _scaled(out, x[self.p], self.own)
        for q, factor in self.others:
            add(out, x[q], factor)
        if last is not None:
            for q, factor in self.gated:
                add(out, x[q], factor, last)


def _there(values: Sequence[Number], but: int = -1) -> list[tuple[int, Number]]:
    """Return the places and values that are not zero."""
    return [(q, one) for q, one in enumerate(values) if q != but and not zero(one)]


def _factor(value: Number, like: Tensor) -> Number:
    """Return a factor as a tensor, which a product need not make in every step; 0 as it is."""
    if isinstance(value, Tensor) or zero(value):
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _rows(k: Coefficients, taken: Sequence[Number], like: Tensor) -> list[_Row]:
    """Return a row for each variable; a spike adds ``taken`` to it."""
    return [
        _Row(
            p=p,
            own=_factor(k.A[p][p], like),
            others=_there(k.A[p], p),
            gated=_there(k.G[p]),
            ports=_there(k.B[p]),
            taken=taken[p],
            start=k.start[p],
            begins=not zero(k.start[p]),
        )
        for p in range(len(k.d))
    ]


def _scaled(out: Tensor, values: Tensor, factor: Number) -> Tensor:
    """Return ``factor values`` in ``out``; what stands there may be anything."""
    return out.zero_() if zero(factor) else torch.mul(values, factor, out=out)


class _Seen(NamedTuple):
    """What makes the distance to the threshold of the state."""

    first: int
    own: Number
    others: list[tuple[int, Number]]
    sight: Number

    @classmethod
    def of(cls, k: Coefficients, like: Tensor, sight: bool = True) -> _Seen:
        """Return it, for tangents without what does not depend on the state."""
        first = next((p for p, factor in enumerate(k.d) if not zero(factor)), 0)
        own, level = _factor(k.d[first], like), _factor(k.sight if sight else 0.0, like)
        return cls(first, own, _there(k.d, first), level)

    def put(self, x: Sequence[Tensor], out: Tensor) -> None:
        """Put the distance into ``out``."""
        _scaled(out, x[self.first], self.own)
        for p, factor in self.others:
            add(out, x[p], factor)
        if not zero(self.sight):
            out.add_(self.sight)


def back(
    k: Coefficients,
    gradient: Tensor,
    passed: Tensor,
    slopes: Tensor | None,
    window: int | None,
    constant: Sequence[bool],
    keep: bool,
    loop: SpikeLoop | None = None,
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
    own = [_factor(k.A[q][q], gradient) for q in range(count)]
    others = [_there([row[q] for row in k.A], q) for q in range(count)]
    gated = [_there([row[q] for row in k.G]) for q in range(count)]
    jumps = _there(k.J)
    through = [_there([row[port] for row in k.B]) for port in range(len(constant))]
    firsts = [_factor(terms[0][1], gradient) if terms else 0.0 for terms in through]
    for t in reversed(range(steps)):
        if t + 1 < steps and starts(t + 1, window):
            for values in lam:
                values.zero_()
        given = gradient[:, t]
        if loop is not None and t + 1 < steps and not starts(t + 1, window):
            given = torch.addmm(given, found[0][:, t + 1], loop.weight)
        if slopes is None:
            credit = given
        elif not jumps:
            torch.mul(given, slopes[:, t], out=credit)
        else:
            credit.copy_(given)
            for p, factor in jumps:
                add(credit, lam[p], factor)
            credit.mul_(slopes[:, t])
        for q, total in enumerate(new):
            _scaled(total, lam[q], own[q])
            for p, factor in others[q]:
                add(total, lam[p], factor)
            for p, factor in gated[q] if slopes is not None else ():
                add(total, lam[p], factor, passed[:, t])
            add(total, credit, k.d[q])
        lam, new = new, lam
        for port, into in enumerate(found):
            place = into[:, 0 if constant[port] else t]
            terms = through[port]
            if not constant[port]:
                _scaled(place, lam[terms[0][0] if terms else 0], firsts[port])
                terms = terms[1:]
            for p, factor in terms:
                add(place, lam[p], factor)
        for course, now in zip(kept, (*lam, credit), strict=False):
            course[:, t] = now
    return kept, found


def tangent(
    k: Coefficients,
    moved: Sequence[Tensor | None],
    passed: Tensor,
    slopes: Tensor | None,
    window: int | None,
    loop: SpikeLoop | None = None,
) -> Tensor:
    """Return the tangent of what is passed on for those of the currents, by port."""
    steps = passed.shape[1]
    x = [torch.zeros_like(passed[:, 0]) for _ in k.d]
    new = [torch.empty_like(values) for values in x]
    out, found, rows = (
        torch.zeros_like(passed[:, 0]),
        torch.empty_like(passed),
        _rows(k, k.J, passed),
    )
    seen = _Seen.of(k, passed, sight=False)
    for t in range(steps):
        if starts(t, window):
            for values in (*x, out):
                values.zero_()
        last = passed[:, t - 1] if t and slopes is not None else None
        fed = None if loop is None else loop.moved(out)
        for row, total in zip(rows, new, strict=True):
            row.decay(x, total, last)
            if slopes is not None:
                add(total, out, row.taken)
            for port, factor in row.ports:
                given = moved[port]
                if given is not None:
                    add(total, given[:, t if given.shape[1] > 1 else 0], factor)
                if fed is not None:
                    add(total, fed, factor)
        x, new = new, x
        seen.put(x, out)
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
