"""Credit through a simulation that has already run: the recorded steps, linearised and scanned.

A population was simulated, and its states ``x[t]`` (after the threshold, before the reset) and
spikes ``s[t]`` were recorded.  With the step ``x[t] = F(x[t-1], s[t-1], z[t])`` and the distance to
the threshold ``D(x[t], z[t])`` as expressions (``transpile``) and a surrogate in place of
``ds/dD``, the gradient by the inputs z is one scan back in time::

    a[t] = surrogate(D[t]) (dL/ds[t] + (dx[t+1]/ds[t])^T l[t+1])
    l[t] = dL/dx[t] + dD/dx[t]^T a[t] + (dx[t+1]/dx[t])^T l[t+1]
    dL/dz[t] = (dx[t]/dz[t])^T l[t] + dD/dz[t]^T a[t]

and the forward derivative is the transposed scan.  ``dx/ds`` is the jump that a spike makes in what
is no potential, as an adaptation; the reset of the potential is held constant (the rule stands in
``translation.transpile``), and without jumps the term is left out.  All derivatives of F and D are
evaluated for all steps at once, the link of two steps through a spike, ``dx[t+1]/ds[t]
surrogate(D[t]) dD/dx[t]``, too; those that are zero are left out, and those that are constant are
plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.contracts.credit_paths import differentiated
from biograd.errors import CapabilityError
from biograd.translation.linearisation import Derivative, Linearisation, Record, Scene, time_first
from biograd.translation.transpile import NeuronStep


class Agreement(NamedTuple):
    """How far a replay is from its record: spikes that differ, and states.

    Attributes:
        mismatches: number of spikes that are in one and not in the other.
        difference: largest difference of a state, relative to the largest value that it takes.
    """

    mismatches: int
    difference: float


def replay(
    step: NeuronStep,
    record: Record,
    ports: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    derivative: Derivative,
    window: int | None = None,
    scale: float = 1.0,
    output: str = "spikes",
) -> Tensor:
    """Return the recorded output ``[rows, T, U]``, differentiable by inputs and parameters.

    Args:
        step: the population's step.
        record: of its simulation with these inputs.
        ports: input variable to its current, ``[rows, T or 1, U]``.
        parameters: trained values that the step reads, broadcastable to ``[rows, T, U]``.
        derivative: of a spike by ``distance / scale``.
        window: number of steps after which credit through time is cut; None: never.
        scale: of the distance to the threshold, in SI units.
        output: "spikes", or the variable whose values after each step are returned.

    Raises:
        CapabilityError: the output is neither "spikes" nor a variable of the state.
    """
    if output != "spikes" and output not in step.states:
        where = f"population {step.population}: no output {output!r}"
        raise CapabilityError(f"{where}; it has 'spikes' and {', '.join(step.states)}")
    inputs = {**ports, **parameters}
    kind = next(iter(inputs.values())).dtype if inputs else torch.float64
    values = record.spikes if output == "spikes" else record.states[output]
    if not any(differentiated(value) for value in inputs.values()):
        return values.transpose(0, 1).to(kind, memory_format=torch.contiguous_format)
    sought = tuple(name for name, value in inputs.items() if differentiated(value))
    scene = Scene(step, record, {name: value.detach() for name, value in inputs.items()})
    counts = output == "spikes" or step.jumps
    slopes = scene.slopes(derivative, scale) if counts else None
    trial = Linearisation(scene, sought, slopes, window, output)
    return cast(Tensor, _Replay.apply(trial, values, kind, *(inputs[name] for name in sought)))


def check(step: NeuronStep, record: Record, ports: Mapping[str, Tensor]) -> Agreement:
    """Return how far each step, recomputed from the recorded step before, is from its record.

    Args:
        step: the population's step.
        record: of its simulation with these inputs.
        ports: input variable to its current, ``[rows, T or 1, U]``.
    """
    scene = Scene(step, record, dict(ports))
    difference = 0.0
    values = step.update.evaluate(step.wanted(), scene.before)
    for name, value in zip(step.states, values, strict=True):
        recorded = record.states[name]
        largest = float(recorded.abs().max()) or 1.0
        difference = max(difference, float((value - recorded).abs().max()) / largest)
    crossing = step.stand({**scene.before, **dict(zip(step.states, values, strict=True))})
    found = torch.zeros_like(record.spikes) if crossing is None else crossing.spikes()
    return Agreement(int((found != record.spikes).sum()), difference)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, trial: Linearisation, values: Tensor, kind: torch.dtype, *inputs: Tensor
    ) -> Tensor:
        ctx.trial, ctx.shapes = trial, [value.shape for value in inputs]
        ctx.kinds = [value.dtype for value in inputs]
        ctx.kind = kind
        return values.transpose(0, 1).to(kind, memory_format=torch.contiguous_format, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        time_first = gradient.transpose(0, 1).to(torch.float64, copy=False).contiguous()
        found = ctx.trial.backward(time_first)
        return (
            None,
            None,
            None,
            *(
                value.transpose(0, 1).sum_to_size(shape).to(kind)
                for value, shape, kind in zip(found, ctx.shapes, ctx.kinds, strict=True)
            ),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        trial = ctx.trial
        given = {
            name: time_first(tangent, trial.scene.step.ports, name).to(torch.float64)
            for name, tangent in zip(trial.sought, tangents[3:], strict=True)
            if tangent is not None
        }
        return trial.forward(given).transpose(0, 1).to(ctx.kind)
