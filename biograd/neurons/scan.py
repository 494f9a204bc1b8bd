"""Any neuron that is linear between its spikes, over a whole trial: one scan back in time.

The loop runs without a graph.  The way back has the coefficients of ``Neuron.advance``, which are
measured by calling it on plain numbers::

    x[t] = (A + s[t-1] G) x[t-1] + J s[t-1] + B I[t]        s[t] = 1 if d . x[t] + const > 0

The spikes in front of ``G`` are held constant, those behind ``J`` carry credit.  A simulator that
has already run the trial gives its course (``Course``): values are its own, the way back is the
neuron's.  Constants that are learned cost no sequential work: their derivative is that of one call
of ``advance`` for all steps at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.contracts.credit_paths import starts
from biograd.errors import BiogradError
from biograd.neurons.neuron import Functions, Neuron, constants_of, state_of
from biograd.neurons.surrogate import Derivative

Number = Any
"""A number, or ``[U]`` where constants differ between neurons."""


class Coefficients(NamedTuple):
    """Those of a step: by new variable and old variable, or port; 0 where there is none."""

    A: list[list[Number]]
    G: list[list[Number]]
    J: list[Number]
    B: list[list[Number]]
    d: list[Number]


class Course(NamedTuple):
    """A trial: variables ``[rows, T, *U]`` each, in their order, and what was passed on."""

    states: list[Tensor]
    passed: Tensor


def coefficients(neuron: Neuron, c: Any) -> Coefficients | None:
    """Return the coefficients of a step; None: it is not linear between spikes.

    Linearity is tested by superposition at a point of no meaning, with and without a spike.
    """
    names, ports = neuron.variables, neuron.ports
    count = len(names)
    zero, silent = [0.0] * count, [0.0] * len(ports)

    def at(x: Sequence[float], fired: float, held: float, into: Sequence[float]) -> list[Number]:
        given = SimpleNamespace(**dict(zip(ports, into, strict=True)))
        return list(neuron.advance(state_of(names)(*x), fired, held, given, c, None))

    def distance(x: Sequence[float]) -> Number:
        return neuron.passed(state_of(names)(*x), c, None)

    try:
        base = {held: at(zero, 0.0, held, silent) for held in (0.0, 1.0)}
        by_state = {
            held: _columns([_minus(at(u, 0.0, held, silent), base[held]) for u in _units(count)])
            for held in (0.0, 1.0)
        }
        into = _columns([_minus(at(zero, 0.0, 0.0, u), base[0.0]) for u in _units(len(ports))])
        fired = _minus(at(zero, 1.0, 0.0, silent), base[0.0])
        sight = [distance(u) - distance(zero) for u in _units(count)]
        x, i = [0.37 * (n + 1) for n in range(count)], [0.61 * (n + 2) for n in range(len(ports))]
        for held in (0.0, 1.0):
            told = [
                start + _dot(by_state[held][p], x) + _dot(into[p], i) + fired[p]
                for p, start in enumerate(base[held])
            ]
            if any(_differ(a, b) for a, b in zip(told, at(x, 1.0, held, i), strict=True)):
                return None
        if _differ(distance(zero) + _dot(sight, x), distance(x)):
            return None
        last = zip(at(x, 0.0, 0.0, i), at(x, 1.0, 1.0, i), strict=True)
        if not neuron.spiking and any(_differ(a, b) for a, b in last):
            return None  # what it passes on comes back as a value, not as a spike
    except (AttributeError, TypeError):  # it calls a function
        return None
    gated = [_minus(one, other) for one, other in zip(by_state[1.0], by_state[0.0], strict=True)]
    return Coefficients(by_state[0.0], gated, fired, into, sight)


def _units(count: int) -> list[list[float]]:
    return [[float(k == n) for k in range(count)] for n in range(count)]


def _minus(found: Sequence[Number], base: Sequence[Number]) -> list[Number]:
    return [a - b for a, b in zip(found, base, strict=True)]


def _columns(rows: list[list[Number]]) -> list[list[Number]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _dot(row: Sequence[Number], values: Sequence[float]) -> Number:
    return sum(a * b for a, b in zip(row, values, strict=True))


def _differ(a: Number, b: Number) -> bool:
    gap = a - b
    return bool((gap.abs().max() if isinstance(gap, Tensor) else abs(gap)) > 1e-5)


def _zero(value: Number) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _add(total: Tensor, values: Tensor, factor: Number, gate: Tensor | None = None) -> None:
    """Add ``factor values gate`` in place."""
    if _zero(factor):
        return
    if isinstance(factor, Tensor):
        total.addcmul_(values if gate is None else values * gate, factor)
    elif gate is None:
        total.add_(values, alpha=factor)
    else:
        total.addcmul_(values, gate, value=factor)


def simulate(
    neuron: Neuron, c: Any, into: Mapping[str, Tensor], steps: int, states: bool
) -> Course:
    """Return the course of a population without a graph.

    Args:
        into: by port ``[rows, steps or 1, *U]``.
        states: whether the variables are kept.
    """
    first = next(iter(into.values()))
    x, out = neuron.begin(first[:, 0]), torch.zeros_like(first[:, 0])
    passed = first.new_empty((len(first), steps, *first.shape[2:]))
    kept = [torch.empty_like(passed) for _ in x] if states else []
    for t in range(steps):
        now = {name: v[:, t if v.shape[1] > 1 else 0] for name, v in into.items()}
        x = neuron.advance(x, out, out, SimpleNamespace(**now), c, Functions)
        seen = neuron.passed(x, c, Functions)
        out = passed[:, t]
        out.copy_(seen > 0 if neuron.spiking else seen)
        for course, value in zip(kept, x, strict=False):
            course[:, t] = value
    if neuron.spiking:
        check_end(dict(zip(neuron.variables, x, strict=True)), passed[:, -1], steps)
    return Course(kept, passed)


def check_end(states: Mapping[str, Tensor], fired: Tensor, steps: int) -> None:
    """Refuse states at the end of a trial that are not finite, which no threshold lets pass.

    One that fires may be infinite: its reset follows.

    Raises:
        BiogradError: with the variable.
    """
    for name, values in states.items():
        if bool(values.isfinite().all()):
            continue
        count = int((~values.isfinite() & (fired == 0)).sum())
        if count:
            raise BiogradError(
                f"{name} of {count} of {values.numel()} neurons is not finite after {steps} steps: "
                "take shorter steps or a weaker current, if the weights before it are finite"
            )


@dataclasses.dataclass
class Trial:
    """What a trial is differentiated by: the neuron, its step, where credit in time is cut.

    Attributes:
        dt_ms: length of a step.
        values: fields that differ between neurons, ``[U]``.
        learned: names of those that are learned, whose values are arguments.
        derivative: stands in for the neuron's surrogate.
        given: the course, if another simulator has run it.
    """

    neuron: Neuron
    dt_ms: float
    steps: int
    values: Mapping[str, Any]
    learned: tuple[str, ...] = ()
    window: int | None = None
    derivative: Derivative | None = None
    given: Course | None = None

    def constants(self, learned: Sequence[Tensor] = ()) -> Any:
        """Return the constants of a step."""
        now = dict(zip(self.learned, learned, strict=True))
        return constants_of(self.neuron, self.dt_ms, {**self.values, **now})

    def slopes(self, c: Any, states: Sequence[Tensor]) -> Tensor | None:
        """Return the derivative of the spikes in every step; None: all are 1."""
        if not self.neuron.spiking:
            return None
        distance = self.neuron.passed(state_of(self.neuron.variables)(*states), c, Functions)
        return (self.derivative or self.neuron.derivative)(distance)


class _RecordedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trial: Trial, k: Coefficients, *tensors: Tensor) -> Tensor:
        ports = trial.neuron.ports
        c = trial.constants(tensors[len(ports) :])
        into = dict(zip(ports, tensors, strict=False))
        course = trial.given or simulate(trial.neuron, c, into, trial.steps, states=True)
        slopes = trial.slopes(c, course.states)
        kept = course.states if trial.learned else []
        ctx.trial, ctx.k, ctx.sloped = trial, k, slopes is not None
        saved = (*tensors, course.passed, *([slopes] if slopes is not None else []), *kept)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        return course.passed.clone() if trial.given else course.passed

    @staticmethod
    def _saved(ctx: Any) -> tuple[list[Tensor], Tensor, Tensor | None, list[Tensor]]:
        trial = ctx.trial
        saved = list(ctx.saved_tensors)
        count = len(trial.neuron.ports) + len(trial.learned)
        tensors, passed, rest = saved[:count], saved[count], saved[count + 1 :]
        slopes = rest.pop(0) if ctx.sloped else None
        return tensors, passed, slopes, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        trial = ctx.trial
        tensors, passed, slopes, states = _RecordedScan._saved(ctx)
        ports = len(trial.neuron.ports)
        credit, found = _backward(trial, ctx.k, gradient, passed, slopes, keep=bool(states))
        by_port = [
            g.sum(1, keepdim=True) if v.shape[1] == 1 and trial.steps > 1 else g
            for g, v in zip(found, tensors[:ports], strict=True)
        ]
        learned = _by_constants(trial, tensors, states, passed, credit) if states else []
        return (None, None, *by_port, *learned)

    @staticmethod
    def jvp(ctx: Any, _trial: None, _k: None, *tangents: Tensor | None) -> Tensor:
        _tensors, passed, slopes, _states = _RecordedScan._saved(ctx)
        ports = tangents[: len(ctx.trial.neuron.ports)]
        moved = _forward(ctx.trial, ctx.k, ports, passed, slopes)
        return moved


def _backward(
    trial: Trial,
    k: Coefficients,
    gradient: Tensor,
    passed: Tensor,
    slopes: Tensor | None,
    keep: bool,
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Return ``dL/dx`` of every step (if kept; the last is dL/d distance) and ``dL/dI`` by port."""
    count, spiking = len(k.d), trial.neuron.spiking
    lam = [torch.zeros_like(gradient[:, 0]) for _ in k.d]
    found = [torch.zeros_like(gradient) for _ in trial.neuron.ports]
    kept: list[list[Tensor]] = [[] for _ in range(count + 1)]
    for t in reversed(range(trial.steps)):
        if starts(t + 1, trial.window):
            lam = [torch.zeros_like(values) for values in lam]
        credit = gradient[:, t].clone()
        for p in range(count if spiking else 0):
            _add(credit, lam[p], k.J[p])
        if slopes is not None:
            credit.mul_(slopes[:, t])
        new = []
        for q in range(count):
            total = torch.zeros_like(credit)
            _add(total, credit, k.d[q])
            for p in range(count):
                _add(total, lam[p], k.A[p][q])
                if spiking:
                    _add(total, lam[p], k.G[p][q], passed[:, t])
            new.append(total)
        lam = new
        for o, into in enumerate(found):
            for p in range(count):
                _add(into[:, t], lam[p], k.B[p][o])
        for values, now in zip(kept, (*lam, credit) if keep else (), strict=False):
            values.append(now)
    return [values[::-1] for values in kept], found


def _by_constants(
    trial: Trial,
    tensors: Sequence[Tensor],
    states: Sequence[Tensor],
    passed: Tensor,
    credit: Sequence[Sequence[Tensor]],
) -> list[Tensor | None]:
    """Return the gradients of the learned fields: one step for all steps at once."""
    neuron, ports = trial.neuron, trial.neuron.ports
    State = state_of(neuron.variables)
    leaves = [v.detach().requires_grad_() for v in tensors[len(ports) :]]

    def before(values: Tensor, first: Tensor) -> Tensor:
        return torch.cat([first[:, None], values[:, :-1]], 1)

    begin = neuron.begin(passed[:, 0])
    x = State(*[before(v, first) for v, first in zip(states, begin, strict=True)])
    spikes = before(passed, torch.zeros_like(passed[:, 0]))
    into = SimpleNamespace(
        **{p: v.expand(-1, trial.steps, *v.shape[2:]) for p, v in zip(ports, tensors, strict=False)}
    )
    with torch.enable_grad():
        c = trial.constants(leaves)
        after = neuron.advance(x, spikes, spikes, into, c, Functions)
        sight = neuron.passed(State(*states), c, Functions)
        pairs = [
            (value, torch.stack(list(given), 1))
            for value, given in zip((*after, sight), credit, strict=True)
            if isinstance(value, Tensor) and value.requires_grad
        ]
        return list(
            torch.autograd.grad(
                [value for value, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True
            )
        )


def _forward(
    trial: Trial,
    k: Coefficients,
    tangents: Sequence[Tensor | None],
    passed: Tensor,
    slopes: Tensor | None,
) -> Tensor:
    """Return the tangent of what is passed on for those of the currents."""
    count, spiking = len(k.d), trial.neuron.spiking
    x = [torch.zeros_like(passed[:, 0]) for _ in k.d]
    out, result = torch.zeros_like(passed[:, 0]), torch.empty_like(passed)
    for t in range(trial.steps):
        if starts(t, trial.window):
            x, out = [torch.zeros_like(v) for v in x], torch.zeros_like(out)
        new = []
        for p in range(count):
            total = torch.zeros_like(out)
            for q in range(count):
                _add(total, x[q], k.A[p][q])
                if t and spiking:
                    _add(total, x[q], k.G[p][q], passed[:, t - 1])
            if spiking:
                _add(total, out, k.J[p])
            for o, tangent in enumerate(tangents):
                if tangent is not None:
                    _add(total, tangent[:, t if tangent.shape[1] > 1 else 0], k.B[p][o])
            new.append(total)
        x, out = new, result[:, t]
        out.zero_()
        for q in range(count):
            _add(out, x[q], k.d[q])
        if slopes is not None:
            out.mul_(slopes[:, t])
    return result


def scan(trial: Trial, k: Coefficients, into: Mapping[str, Tensor], *learned: Tensor) -> Tensor:
    """Return what a population passes on over a trial, ``[rows, steps, *U]``; differentiable.

    Args:
        k: the coefficients of its step.
        into: currents by port, ``[rows, steps or 1, *U]``.
        learned: values of ``trial.learned``, ``[U]``.
    """
    tensors = (*(into[port] for port in trial.neuron.ports), *learned)
    return cast(Tensor, _RecordedScan.apply(trial, k, *tensors))
