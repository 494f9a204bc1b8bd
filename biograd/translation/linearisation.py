"""A recorded trial of a population, linearised in all steps at once and scanned in time.

The equations stand in ``translation.replay``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from biograd.contracts.credit_paths import starts
from biograd.errors import CapabilityError
from biograd.translation.expressions import Expression, ExpressionGraph
from biograd.translation.operations import Value
from biograd.translation.scopes import FIRED
from biograd.translation.transpile import NeuronStep

Derivative = Callable[[Tensor], Tensor]
"""Scaled distance to the threshold to the derivative of the spike by it."""
Jacobian = dict[tuple[str, str], Value]
"""(variable, by variable) to the derivative, broadcastable to ``[T, rows, U]``; absent: zero."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One trial of a population, time first, float64, in plain SI units.

    Replay may read it until its graph is gone: no tensor may change in place.

    Attributes:
        states: variable to ``[T, rows, U]``: after update and threshold, before the reset.
        initial: variable to ``[rows, U]`` or broadcastable: before the first step; no spikes
            precede it.
        spikes: ``[T, rows, U]``, 0 or 1.
        ready: not refractory as used in update and threshold, bool ``[T, rows, U]``; None: always.
        given: other values by name: ``[U]``, ``[rows, U]`` or ``[T, rows, U]``.
        dt: length of a step in seconds.
        first: number of steps of the simulation that precede the record.
    """

    states: dict[str, Tensor]
    initial: dict[str, Tensor]
    spikes: Tensor
    ready: Tensor | None
    given: dict[str, Tensor]
    dt: float
    first: int = 0

    @property
    def steps(self) -> int:
        """The number of steps, ``T``."""
        return self.spikes.shape[0]

    @property
    def times(self) -> Tensor:
        """The time of each step in seconds, ``[T, 1, 1]``."""
        steps = torch.arange(self.first, self.first + self.steps, dtype=torch.float64)
        return (steps * self.dt)[:, None, None]


class Scene:
    """The values with which a recorded trial is evaluated, all steps at once.

    Attributes:
        before: inputs of the update: the states with impulses, before the reset.
        after: inputs of the threshold: the recorded states.
    """

    def __init__(self, step: NeuronStep, record: Record, inputs: dict[str, Tensor]) -> None:
        self.step, self.record = step, record
        driven = {
            name: time_first(value, step.ports, name).to(torch.float64)
            for name, value in inputs.items()
        }
        common: dict[str, Tensor] = {
            name: _three(value) for name, value in record.given.items() if name in step.reads
        }
        common |= {name: value for name, value in driven.items() if name not in step.states}
        passed = torch.zeros_like(record.spikes)
        passed[1:] = record.spikes[:-1]
        common |= step.around(passed, record.ready, record.times)
        states = {name: record.states[name].to(torch.float64) for name in step.states}
        self.after = {**common, **states}
        self.before = dict(common)
        for name in step.states:
            state = torch.empty_like(record.spikes)
            state[:1] = _three(record.initial[name])
            state[1:] = states[name][:-1]
            self.before[name] = state + driven[name] if name in driven else state

    def slopes(self, derivative: Derivative, scale: float) -> Tensor:
        """Return the derivative of the spikes by the distance to the threshold, time first.

        Raises:
            CapabilityError: the population has no threshold.
        """
        crossing = self.step.stand(self.after)
        if crossing is None:
            name = self.step.population
            raise CapabilityError(
                f"population {name} has no threshold and no spikes; choose a variable as its output"
            )
        distance = crossing.distance.expand(self.record.spikes.shape)
        scaled = distance if scale == 1 else distance / scale
        slopes = derivative(scaled.transpose(0, 1)).transpose(0, 1)
        if crossing.allowed is not None:
            slopes = slopes.where(crossing.allowed, 0.0)
        return slopes if scale == 1 else slopes / scale


@dataclasses.dataclass
class Linearisation:
    """How a recorded trial is differentiated.

    Attributes:
        sought: the inputs by which it is.
        surrogate: derivative of the spikes by the distance to the threshold; None: nothing
            depends on them.
        window: number of steps after which credit through time is cut.
        output: "spikes" or a variable.
    """

    scene: Scene
    sought: tuple[str, ...]
    surrogate: Tensor | None
    window: int | None
    output: str

    @cached_property
    def motion(self) -> Jacobian:
        """The derivatives of the new states by the old ones and by the inputs."""
        step = self.scene.step
        seeds = (*step.states, *(name for name in self.sought if name not in step.states))
        return _jacobian(step.update, step.updated, seeds, self.scene.before)

    @cached_property
    def sight(self) -> Jacobian:
        """The derivatives of the distance to the threshold by the states and the inputs."""
        step = self.scene.step
        if self.surrogate is None or step.distance is None:
            return {}
        seeds = (*step.states, *(name for name in self.sought if name not in step.states))
        return _jacobian(step.crossing, {"distance": step.distance}, seeds, self.scene.after)

    @cached_property
    def echo(self) -> dict[str, Tensor]:
        """The derivatives of the new states by the distance to the threshold one step before."""
        step = self.scene.step
        if self.surrogate is None or not step.jumps:
            return {}
        jumps = _jacobian(step.update, step.updated, (FIRED,), self.scene.before)
        past = _later(self.surrogate)
        if self.window:
            past[:: self.window] = 0
        return {new: past * jump for (new, _), jump in jumps.items()}

    @cached_property
    def links(self) -> Jacobian:
        """The derivatives of the new states by the old ones, also by way of the spikes."""
        states = self.scene.step.states
        found = {key: slope for key, slope in self.motion.items() if key[1] in states}
        for new, echo in self.echo.items():
            for (_, old), slope in self.sight.items():
                if old in states:
                    through = echo * (_later(slope) if isinstance(slope, Tensor) else slope)
                    found[new, old] = found.get((new, old), 0.0) + through
        return found

    @cached_property
    def alive(self) -> list[str]:
        """The states on which the output depends, now or later."""
        spikes = self.output == "spikes"
        found = {name for _, name in self.sight} if spikes else {self.output}
        states = [name for name in self.scene.step.states if name in found]
        for state in states:
            reached = [old for new, old in self.links if new == state]
            states += [old for old in reached if old not in states]
        return states

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Return the gradients ``[T, rows, U]`` by the inputs for one of the output, time first."""
        shape = self.scene.record.spikes.shape
        credit = {name: gradient.new_zeros(shape) for name in self.alive}
        if self.output == "spikes":
            assert self.surrogate is not None
            direct = gradient * self.surrogate
            for (_, name), slope in self.sight.items():
                if name in credit:
                    torch.mul(direct, slope, out=credit[name])
        else:
            direct = torch.zeros_like(gradient)
            credit[self.output].copy_(gradient)
        self._carry_back(credit)
        for name, echo in self.echo.items():
            if name in credit:
                direct[:-1].addcmul_(credit[name][1:], echo[1:])
        return [self._by_input(name, credit, direct) for name in self.sought]

    def _carry_back(self, credit: dict[str, Tensor]) -> None:
        """Add to the credit of each state what comes from later steps."""
        steps = self.scene.record.steps
        rows = {name: values.unbind(0) for name, values in credit.items()}
        links = [
            (rows[new], rows[old], _by_step(slope, steps))
            for (new, old), slope in self.links.items()
            if new in credit and old in credit
        ]
        for index in range(steps - 2, -1, -1):
            if not starts(index + 1, self.window):
                for later, earlier, slopes in links:
                    _add_product(earlier[index], later[index + 1], slopes[index + 1])

    def _by_input(self, name: str, credit: Mapping[str, Tensor], direct: Tensor) -> Tensor:
        total = torch.zeros_like(direct)
        for (new, by), slope in self.motion.items():
            if by == name and new in credit:
                _add_product(total, credit[new], slope)
        if name not in self.scene.step.states:
            for (_, by), slope in self.sight.items():
                if by == name:
                    _add_product(total, direct, slope)
        return total

    def forward(self, tangents: Mapping[str, Tensor]) -> Tensor:
        """Return the tangent of the output for those of the inputs, time first."""
        record = self.scene.record
        moved = {name: record.spikes.new_zeros(record.spikes.shape) for name in self.alive}
        for (new, by), slope in self.motion.items():
            if by in tangents and new in moved:
                _add_product(moved[new], tangents[by].expand_as(moved[new]), slope)
        given = {n: value for n, value in tangents.items() if n not in self.scene.step.states}
        if self.echo:
            shifted = self._distance(given)
            for name, echo in self.echo.items():
                if name in moved:
                    moved[name][1:].addcmul_(shifted[:-1], echo[1:])
        self._carry_forward(moved)
        if self.output != "spikes":
            return moved[self.output]
        assert self.surrogate is not None
        return self._distance({**moved, **given}).mul_(self.surrogate)

    def _distance(self, tangents: Mapping[str, Tensor]) -> Tensor:
        """Return the tangent of the distance to the threshold."""
        total = torch.zeros_like(self.scene.record.spikes)
        for (_, by), slope in self.sight.items():
            if by in tangents:
                _add_product(total, tangents[by].expand_as(total), slope)
        return total

    def _carry_forward(self, moved: dict[str, Tensor]) -> None:
        """Add to the tangent of each state what comes from earlier steps."""
        steps = self.scene.record.steps
        rows = {name: values.unbind(0) for name, values in moved.items()}
        links = [
            (rows[new], rows[old], _by_step(slope, steps))
            for (new, old), slope in self.links.items()
            if new in moved and old in moved
        ]
        for index in range(1, steps):
            if not starts(index, self.window):
                for later, earlier, slopes in links:
                    _add_product(later[index], earlier[index - 1], slopes[index])


def _jacobian(
    graph: ExpressionGraph,
    of: Mapping[str, Expression],
    seeds: tuple[str, ...],
    inputs: Mapping[str, Tensor],
) -> Jacobian:
    """Return the derivatives of expressions by inputs that are not zero."""
    nodes = {
        (name, seed): graph.derivative(node, graph.input(seed))
        for name, node in of.items()
        for seed in seeds
    }
    nodes = {key: node for key, node in nodes.items() if not node.equals(0)}
    return dict(zip(nodes, graph.evaluate(list(nodes.values()), inputs), strict=True))


def _later(values: Tensor) -> Tensor:
    """Return what stood one step before, 0 before the first; one value for all steps as it is."""
    if values.dim() < 3 or len(values) == 1:
        return values
    return torch.cat((torch.zeros_like(values[:1]), values[:-1]))


def _three(value: Tensor) -> Tensor:
    """Return a value by unit, by row, or by step as ``[T or 1, rows or 1, U or 1]``."""
    return value.reshape((1,) * (3 - value.dim()) + value.shape).to(torch.float64)


def time_first(value: Tensor, ports: tuple[str, ...], name: str) -> Tensor:
    """Return an input ``[rows, T or 1, U]``, or a parameter with fewer dimensions, time first."""
    if value.dim() == 3:
        return value.transpose(0, 1)
    if name in ports:
        raise ValueError(f"a port's current is [rows, steps or 1, units], not {list(value.shape)}")
    return value.reshape((1,) * (3 - value.dim()) + value.shape).transpose(0, 1)


def _by_step(slope: Value, steps: int) -> Any:
    """Return a derivative for each step."""
    if not isinstance(slope, Tensor) or slope.dim() < 3:
        return [slope] * steps
    return slope.unbind(0) if slope.shape[0] == steps else [slope[0]] * steps


def _add_product(total: Tensor, values: Tensor, slope: Value) -> None:
    if isinstance(slope, Tensor):
        total.addcmul_(values, slope)
    else:
        total.add_(values, alpha=slope)
