"""Any neuron that is linear between its spikes, over a whole trial: one scan back in time.

The loop runs without a graph.  The way back has the coefficients of ``Neuron.advance``, which are
measured by calling it on plain numbers (``neurons.coefficients``).  Compiled loops do the work
where they can (``neurons.fused_scan``), operations of torch elsewhere (``neurons.plain_scan``).  A
simulator that has already run the trial gives its course (``Course``): values are its own, the way
back is the neuron's.  Constants that are learned cost no sequential work: their derivative is that
of one call of ``advance`` for all steps at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.contracts.credit_paths import without_derivative
from biograd.errors import BiogradError
from biograd.neurons import fused_scan, plain_scan
from biograd.neurons.coefficients import Coefficients, SpikeLoop
from biograd.neurons.neuron import Functions, Neuron, Spiking, constants_of, state_of
from biograd.neurons.surrogate import SURROGATES, Derivative


class Course(NamedTuple):
    """A trial: variables ``[rows, T, *U]`` each, in their order, and what was passed on."""

    states: list[Tensor]
    passed: Tensor


def simulate(
    neuron: Neuron, c: Any, into: Mapping[str, Tensor], steps: int, states: bool
) -> Course:
    """Return the course of a population of any kind step by step, without a graph.

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


Recorded = tuple[Tensor, Tensor | None, list[Tensor]]
"""What is passed on, distances and states, ``[rows, steps, *U]``."""


def record(
    neuron: Neuron,
    k: Coefficients,
    into: Mapping[str, Tensor],
    steps: int,
    keep: str = "nothing",
    loop: SpikeLoop | None = None,
) -> Recorded:
    """Return what is passed on, distances and states, ``[rows, steps, *U]``, without a graph.

    Args:
        k: the coefficients of its step.
        into: by port ``[rows, steps or 1, *U]``.
        keep: "nothing", "distance", or "states" as well.
        loop: by which the spikes of a step come back in the next.
    """
    drives = [into[port].detach() for port in neuron.ports]
    if fused_scan.serves(k, drives[0], steps):
        found = fused_scan.forward(k, drives[0], steps, neuron.spiking, keep, loop)
    else:
        found = plain_scan.forward(k, drives, steps, neuron.spiking, keep, loop)
    passed, distance, states, ends = found
    if neuron.spiking:
        check_end(dict(zip(k.names, ends, strict=True)), passed[:, -1], steps)
    return passed, distance, states


@dataclasses.dataclass
class Trial:
    """What a trial is differentiated by: the neuron, its step, where credit in time is cut.

    Attributes:
        dt_ms: length of a step.
        values: fields that differ between neurons, ``[U]``.
        learned: names of those that are learned, whose values are arguments.
        derivative: stands in for the neuron's surrogate.
        given: the course, if another simulator has run it.
        loop: by which the spikes of a step come back in the next; the current then holds what they
            bring, and ``recorded`` is the trial.
    """

    neuron: Neuron
    dt_ms: float
    steps: int
    values: Mapping[str, Any]
    learned: tuple[str, ...] = ()
    window: int | None = None
    derivative: Derivative | None = None
    given: Course | None = None
    loop: SpikeLoop | None = None
    recorded: Recorded | None = None

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

    @property
    def keep(self) -> str:
        """What the way back needs of the way forward."""
        return "states" if self.learned else "distance" if self.neuron.spiking else "nothing"

    @property
    def surrogate(self) -> tuple[int, float]:
        """The number and steepness of a surrogate that compiled loops know."""
        neuron = self.neuron
        own = self.derivative is None and type(neuron).derivative is Spiking.derivative
        if own and isinstance(neuron, Spiking) and self.given is None:
            function = SURROGATES[neuron.surrogate]
            if function in fused_scan.KNOWN:
                return fused_scan.KNOWN.index(function), neuron.slope
        return fused_scan.GIVEN, 1.0


class _RecordedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trial: Trial, k: Coefficients, *tensors: Tensor) -> Tensor:
        neuron, ports = trial.neuron, trial.neuron.ports
        into = dict(zip(ports, tensors, strict=False))
        ctx.trial, ctx.k = trial, k
        ctx.constant = [into[p].shape[1] == 1 and trial.steps > 1 for p in ports]
        ctx.fused = fused_scan.serves(k, tensors[0], trial.steps)
        ctx.surrogate = trial.surrogate if ctx.fused else (fused_scan.GIVEN, 1.0)
        if trial.given is None:
            known = trial.recorded
            passed, slopes, states = known or record(neuron, k, into, trial.steps, trial.keep)
            trial.recorded = None  # what backward needs is saved
            if neuron.spiking and ctx.surrogate[0] == fused_scan.GIVEN:
                assert slopes is not None
                slopes = (trial.derivative or neuron.derivative)(slopes)
        else:
            states, passed = trial.given.states, trial.given.passed.clone()
            slopes = trial.slopes(trial.constants(tensors[len(ports) :]), states)
        own = [slopes] if neuron.spiking and slopes is not None else []
        kept = [*tensors, *states] if trial.learned else []
        ctx.save_for_backward(passed, *own, *kept)
        ctx.save_for_forward(passed, *own, *kept)
        return passed

    @staticmethod
    def _saved(ctx: Any) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
        trial = ctx.trial
        passed, *rest = ctx.saved_tensors
        slopes = rest.pop(0) if trial.neuron.spiking else None
        count = len(trial.neuron.ports) + len(trial.learned)
        return passed, slopes, rest[:count], rest[count:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        trial = ctx.trial
        passed, slopes, tensors, states = _RecordedScan._saved(ctx)
        learns = bool(trial.learned)
        told = (trial.window, ctx.constant, learns, trial.loop)
        if ctx.fused:
            seen = None if slopes is None else (slopes, *ctx.surrogate)
            credit, by_port = fused_scan.back(ctx.k, gradient, passed, seen, *told)
        else:
            credit, by_port = plain_scan.back(ctx.k, gradient, passed, slopes, *told)
        learned = _by_constants(trial, tensors, states, passed, credit) if learns else []
        return (None, None, *by_port, *learned)

    @staticmethod
    def jvp(ctx: Any, _trial: None, _k: None, *tangents: Tensor | None) -> Tensor:
        passed, slopes, _tensors, _states = _RecordedScan._saved(ctx)
        moved, window = tangents[: len(ctx.trial.neuron.ports)], ctx.trial.window
        with torch.no_grad():
            found = _RecordedScan._moved(ctx, moved, passed, slopes, window)
        given = [values for values in moved if values is not None]
        return without_derivative(found, "a tangent of a whole trial carries none", given)

    @staticmethod
    def _moved(
        ctx: Any,
        moved: Sequence[Tensor | None],
        passed: Tensor,
        slopes: Tensor | None,
        window: int | None,
    ) -> Tensor:
        if ctx.fused and moved[0] is not None and ctx.trial.loop is None:
            seen = None if slopes is None else (slopes, *ctx.surrogate)
            return fused_scan.tangent(ctx.k, moved[0], passed, seen, window)
        if ctx.surrogate[0] != fused_scan.GIVEN and slopes is not None:
            slopes = ctx.trial.neuron.derivative(slopes)
        return plain_scan.tangent(ctx.k, moved, passed, slopes, window, ctx.trial.loop)


def _by_constants(
    trial: Trial,
    tensors: Sequence[Tensor],
    states: Sequence[Tensor],
    passed: Tensor,
    credit: Sequence[Tensor],
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
            (value, given)
            for value, given in zip((*after, sight), credit, strict=True)
            if isinstance(value, Tensor) and value.requires_grad
        ]
        return list(
            torch.autograd.grad(
                [value for value, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True
            )
        )


def scan(trial: Trial, k: Coefficients, into: Mapping[str, Tensor], *learned: Tensor) -> Tensor:
    """Return what a population passes on over a trial, ``[rows, steps, *U]``; differentiable.

    Args:
        k: the coefficients of its step.
        into: currents by port, ``[rows, steps or 1, *U]``.
        learned: values of ``trial.learned``, ``[U]``.
    """
    tensors = (*(into[port] for port in trial.neuron.ports), *learned)
    k = k if trial.learned else k.without_unread()
    return cast(Tensor, _RecordedScan.apply(trial, k, *tensors))
