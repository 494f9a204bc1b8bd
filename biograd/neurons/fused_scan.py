"""Linear neurons over a whole trial in compiled loops: numba, one pass forward and one back.

A row is run through at a time, so that its state stays in the processor's cache: forward, a neuron
and step cost one current read, and spike and distance written; back, a gradient and a distance
read, and a gradient written.  Compiled once for each kind of use and kept on disk by numba.

The coefficients stand in one table ``k``, ``[K, U or 1]``: ``A``, ``G`` (``n n`` each), ``J``,
``H``, ``B``, ``start``, ``d`` (``n`` each) and ``sight``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy
import torch
from torch import Tensor

from biograd.contracts.credit_paths import starts
from biograd.neurons.coefficients import Coefficients, SpikeLoop
from biograd.neurons.surrogate import arctan, fast_sigmoid
from biograd.process.compiled import KERNEL_DTYPES, available, compiled, divided

LEAST = 1000
"""Neurons times steps below which importing and calling a compiler does not pay."""
KNOWN = (fast_sigmoid, arctan)
"""Surrogates whose slope the way back computes by itself; others are given to it."""
GIVEN = len(KNOWN)
Slopes = tuple[Tensor, int, float]
"""Distances, the number of their surrogate and its steepness; or slopes, and ``GIVEN``."""


def serves(k: Coefficients, like: Tensor, steps: int) -> bool:
    """Return whether the compiled loops take a population, ``like`` its current."""
    units = math.prod(like.shape[2:])
    return (
        like.device.type == "cpu"
        and like.dtype in KERNEL_DTYPES
        and len(k.B[0]) == 1
        and steps * units >= LEAST
        and available()
    )


def table(k: Coefficients, like: Tensor) -> tuple[Any, bool]:
    """Return the coefficients ``[K, U or 1]``, and whether they differ between neurons."""
    rows = [v for m in (k.A, k.G) for row in m for v in row]
    rows += [*k.J, *k.H, *(b[0] for b in k.B), *k.start, *k.d, k.sight]
    wide = any(isinstance(v, Tensor) for v in rows)
    if not wide:
        return numpy.array(rows, _kind(like))[:, None], False
    units = like.shape[2:]
    parts = [torch.as_tensor(v, dtype=like.dtype).expand(units).reshape(-1) for v in rows]
    return torch.stack(parts).detach().numpy(), True


def _kind(like: Tensor) -> Any:
    return numpy.float32 if like.dtype == torch.float32 else numpy.float64


def _flat(values: Tensor) -> Any:
    """Return ``[rows, steps, U]`` as numpy sees it, without a copy where there need be none."""
    return values.detach().contiguous().flatten(2).numpy()


def forward(
    k: Coefficients,
    current: Tensor,
    steps: int,
    spiking: bool,
    keep: str,
    loop: SpikeLoop | None = None,
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Return what is passed on, distances, states, ``[rows, steps, *U]``, and the last states.

    Args:
        current: ``[rows, steps or 1, *U]``.
        keep: "nothing", "distance", or "states" as well.
        loop: by which the spikes of a step come back in the next.
    """
    rows, _, *shape = current.shape
    n, (coefs, wide) = len(k.d), table(k, current)
    units = math.prod(shape)
    new = current.detach().new_empty
    passed = new((rows, steps, *shape))
    distance = new((rows, steps, *shape)) if keep != "nothing" else None
    states = new((n, rows, steps, *shape)) if keep == "states" else new((n, 1, 1, *shape))
    ends = new((n, rows, *shape))
    looped = loop is not None
    work = _forward_kernel(
        n, wide, k.gated, spiking, distance is not None, keep == "states", looped
    )
    seen = distance if distance is not None else new((1, 1, *shape))
    places = states.view(n, states.shape[1], states.shape[2], units).numpy()
    last = ends.view(n, rows, units).numpy()
    fed = loop.rows(current) if loop is not None else (new((1, 1)).numpy(), new(1).numpy())
    arrays = (_flat(current), coefs, _flat(passed), _flat(seen), places, last)
    divided(work, rows, passed.numel(), *arrays, *fed)
    return passed, distance, list(states) if keep == "states" else [], list(ends)


def back(
    k: Coefficients,
    gradient: Tensor,
    passed: Tensor,
    slopes: Slopes | None,
    window: int | None,
    constant: Sequence[bool],
    keep: bool,
    loop: SpikeLoop | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``dL/dx`` of every step with ``dL/d distance`` (if kept), and ``dL/dI``.

    Args:
        gradient: ``dL/d passed``, ``[rows, steps, *U]``.
        slopes: None: what is passed on is the distance itself.
        constant: by port, whether the current was the same in every step.
    """
    rows, steps, *shape = gradient.shape
    n, (coefs, wide) = len(k.d), table(k, gradient)
    units = math.prod(shape)
    found = gradient.new_empty((rows, 1 if constant[0] else steps, *shape))
    kept = gradient.new_empty((n + 1, rows, steps, *shape) if keep else (n + 1, 1, 1, *shape))
    distance, surrogate, steep = slopes if slopes is not None else (gradient[:1, :1], GIVEN, 1.0)
    looped = loop is not None
    work = _back_kernel(n, wide, k.gated, slopes is not None, surrogate, constant[0], keep, looped)
    arrays = (_flat(gradient), coefs, _flat(passed), _flat(distance), _flat(found))
    places = kept.view(n + 1, kept.shape[1], kept.shape[2], units).numpy()
    carried, more = gradient.new_zeros(n, rows, units), gradient.new_zeros(rows, units)
    settings = (window or 0, _kind(gradient)(steep), carried.numpy(), more.numpy())
    if loop is None:
        divided(work, rows, gradient.numel(), *arrays, places, *settings, 0, steps)
        return list(kept) if keep else [], [found]
    for t in reversed(range(steps)):  # the product of all rows is the library's
        if t + 1 < steps and not starts(t + 1, window):
            torch.mm(found[:, t + 1], loop.weight, out=more)
        elif t + 1 < steps:
            more.zero_()
        divided(work, rows, more.numel(), *arrays, places, *settings, t, t + 1)
    return list(kept) if keep else [], [found]


def tangent(
    k: Coefficients,
    moved: Tensor,
    passed: Tensor,
    slopes: Slopes | None,
    window: int | None,
) -> Tensor:
    """Return the tangent of what is passed on for one of the current, ``[rows, steps, *U]``."""
    rows, (coefs, wide) = len(passed), table(k, passed)
    found = torch.empty_like(passed)
    distance, surrogate, steep = slopes if slopes is not None else (passed[:1, :1], GIVEN, 1.0)
    work = _tangent_kernel(len(k.d), wide, k.gated, slopes is not None, surrogate)
    arrays = (_flat(moved), coefs, _flat(passed), _flat(distance), _flat(found))
    divided(work, rows, passed.numel(), *arrays, window or 0, _kind(passed)(steep))
    return found


@cache
def _forward_kernel(
    n: int, wide: bool, gated: bool, spiking: bool, seen: bool, states: bool, looped: bool
) -> Callable[..., None]:
    """Return the loop forward; the arguments are constants for the compiler."""
    G, H, B, S, D = n * n, 2 * n * n + n, 2 * n * n + 2 * n, 2 * n * n + 3 * n, 2 * n * n + 4 * n

    def run(first, end, current, k, passed, distance, places, ends, loop, start):  # type: ignore[no-untyped-def]
        _, steps, units = passed.shape
        one, none = passed.dtype.type(1), passed.dtype.type(0)
        x, new = numpy.zeros((n, units), passed.dtype), numpy.zeros((n, units), passed.dtype)
        last = numpy.zeros(units, passed.dtype)
        total = numpy.zeros(units, passed.dtype)
        for b in range(first, end):
            x[:] = none
            last[:] = none
            for t in range(steps):
                drive, out = current[b, t if current.shape[1] > 1 else 0], passed[b, t]
                if looped:
                    for u in range(units):
                        total[u] = drive[u] + start[u]
                    for s in range(units):
                        if last[s] > none:
                            row = loop[s]
                            for u in range(units):
                                total[u] += row[u]
                    drive = total
                far = distance[b if seen else 0, t if seen else 0]
                for p in range(n):
                    into = new[p]
                    for u in range(units):
                        w = u if wide else 0
                        value = k[S + p, w]
                        for q in range(n):
                            value += k[p * n + q, w] * x[q, u]
                            if gated:
                                value += last[u] * (k[G + p * n + q, w] * x[q, u])
                        value += k[B + p, w] * drive[u]
                        if spiking:
                            value += k[H + p, w] * last[u]
                        into[u] = value
                    if states:
                        places[p, b, t] = into
                for u in range(units):
                    w = u if wide else 0
                    away = k[D + n, w]
                    for p in range(n):
                        away += k[D + p, w] * new[p, u]
                    if seen:
                        far[u] = away
                    if spiking:
                        away = one if away > none else none
                        last[u] = away
                    out[u] = away
                x, new = new, x
            for p in range(n):
                ends[p, b] = x[p]

    return compiled(run)


@cache
def _back_kernel(
    n: int,
    wide: bool,
    gated: bool,
    spiking: bool,
    surrogate: int,
    constant: bool,
    keep: bool,
    looped: bool,
) -> Callable[..., None]:
    """Return the loop back; the arguments are constants for the compiler.

    The slope stands in the loop: numba keeps no loop on disk that calls another of its own.
    """
    G, J, B, D = n * n, 2 * n * n, 2 * n * n + 2 * n, 2 * n * n + 4 * n

    def run(  # type: ignore[no-untyped-def]
        first,
        end,
        gradient,
        k,
        passed,
        distance,
        found,
        kept,
        window,
        steep,
        carried,
        more,
        low,
        high,
    ):
        _, steps, units = gradient.shape
        one, none = gradient.dtype.type(1), gradient.dtype.type(0)
        lam, new = numpy.zeros((n, units), gradient.dtype), numpy.zeros((n, units), gradient.dtype)
        credit = numpy.zeros(units, gradient.dtype)
        for b in range(first, end):
            lam[:] = carried[:, b]
            if constant:
                found[b, 0] = none
            for t in range(high - 1, low - 1, -1):
                if window > 0 and t + 1 < steps and (t + 1) % window == 0:
                    lam[:] = none
                given, into = gradient[b, t], found[b, 0 if constant else t]
                far, fired = distance[b if spiking else 0, t if spiking else 0], passed[b, t]
                for u in range(units):
                    w = u if wide else 0
                    value = given[u]
                    if looped:
                        value += more[b, u]
                    if spiking:
                        for p in range(n):
                            value += k[J + p, w] * lam[p, u]
                        if surrogate == 0:
                            root = one / (one + steep * abs(far[u]))
                            value *= root * root
                        elif surrogate == 1:
                            value *= one / (one + steep * far[u] * (steep * far[u]))
                        else:
                            value *= far[u]
                    credit[u] = value
                for q in range(n):
                    row = new[q]
                    for u in range(units):
                        w = u if wide else 0
                        value = k[D + q, w] * credit[u]
                        for p in range(n):
                            value += k[p * n + q, w] * lam[p, u]
                            if gated:
                                value += fired[u] * (k[G + p * n + q, w] * lam[p, u])
                        row[u] = value
                    if keep:
                        kept[q, b, t] = row
                if keep:
                    kept[n, b, t] = credit
                lam, new = new, lam
                for u in range(units):
                    w = u if wide else 0
                    value = none
                    for p in range(n):
                        value += k[B + p, w] * lam[p, u]
                    if constant:
                        into[u] += value
                    else:
                        into[u] = value
            carried[:, b] = lam

    return compiled(run)


@cache
def _tangent_kernel(
    n: int, wide: bool, gated: bool, spiking: bool, surrogate: int
) -> Callable[..., None]:
    """Return the loop forward for tangents; the arguments are constants for the compiler."""
    G, J, B, D = n * n, 2 * n * n, 2 * n * n + 2 * n, 2 * n * n + 4 * n

    def run(first, end, moved, k, passed, distance, found, window, steep):  # type: ignore[no-untyped-def]
        _, steps, units = passed.shape
        one, none = passed.dtype.type(1), passed.dtype.type(0)
        x, new = numpy.zeros((n, units), passed.dtype), numpy.zeros((n, units), passed.dtype)
        out, still = numpy.zeros(units, passed.dtype), numpy.zeros(units, passed.dtype)
        for b in range(first, end):
            x[:] = none
            out[:] = none
            for t in range(steps):
                if window > 0 and t > 0 and t % window == 0:
                    x[:] = none
                    out[:] = none
                drive, into = moved[b, t if moved.shape[1] > 1 else 0], found[b, t]
                fired = passed[b, t - 1] if t > 0 else still
                far = distance[b if spiking else 0, t if spiking else 0]
                for p in range(n):
                    row = new[p]
                    for u in range(units):
                        w = u if wide else 0
                        value = k[B + p, w] * drive[u]
                        if spiking:
                            value += k[J + p, w] * out[u]
                        for q in range(n):
                            value += k[p * n + q, w] * x[q, u]
                            if gated:
                                value += fired[u] * (k[G + p * n + q, w] * x[q, u])
                        row[u] = value
                for u in range(units):
                    w = u if wide else 0
                    value = none
                    for p in range(n):
                        value += k[D + p, w] * new[p, u]
                    if spiking:
                        if surrogate == 0:
                            root = one / (one + steep * abs(far[u]))
                            value *= root * root
                        elif surrogate == 1:
                            value *= one / (one + steep * far[u] * (steep * far[u]))
                        else:
                            value *= far[u]
                    out[u] = value
                    into[u] = value
                x, new = new, x

    return compiled(run)
