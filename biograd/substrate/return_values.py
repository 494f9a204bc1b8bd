"""What of a module's return value its outputs are, and a module that is applied step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biograd.errors import CapabilityError, nearest
from biograd.substrate.kept import Reset, ResetBefore

OverTime = Literal["all", "sum", "mean", "last", "max"]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What of a module's return value its outputs are, and how they lie.

    Modules of spiking libraries return ``(spikes, membrane)``, or a course with the steps first;
    neither can be told from the shapes alone.

    Attributes:
        part: place in a tuple or key of a dictionary; None: the value itself.
        time_first: the value is ``[T, B, ...]``, the outputs then are ``[B, T, ...]``.
        over_time: what becomes of the steps, the second axis of the outputs: "all" stay, or their
            "sum", "mean", "max" or the "last" of them is taken.
    """

    part: int | str | None = None
    time_first: bool = False
    over_time: OverTime = "all"

    def __post_init__(self) -> None:
        known = ("all", "sum", "mean", "last", "max")
        if self.over_time not in known:
            raise CapabilityError(
                f"Outputs: over_time = {self.over_time!r}: {nearest(self.over_time, known)}"
            )

    def __call__(self, value: Any) -> Tensor:
        """Return the outputs ``[B, ...]``.

        Raises:
            CapabilityError: the value has no such part, or the part no steps.
        """
        found = value if self.part is None else self._part(value)
        if not isinstance(found, Tensor):
            return found  # refused by whoever called
        if (self.time_first or self.over_time != "all") and found.dim() < 2 + self.time_first:
            raise CapabilityError(f"Outputs: {list(found.shape)} has no axis of steps")
        course = found.transpose(0, 1) if self.time_first else found
        if self.over_time == "all":
            return course
        if self.over_time == "last":
            return course[:, -1]
        return course.amax(1) if self.over_time == "max" else getattr(course, self.over_time)(1)

    def _part(self, value: Any) -> Any:
        """Return a part of a tuple or dictionary."""
        kind, assorted = type(value).__name__, isinstance(value, Mapping)
        if not isinstance(value, (tuple, list, Mapping)):
            raise CapabilityError(
                f"Outputs: part = {self.part!r}, but the module returns one {kind}: leave part out"
            )
        try:
            return value[self.part]  # type: ignore[index]
        except (LookupError, TypeError) as error:
            known = f"keys {list(value)}" if assorted else f"{len(value)} parts, from 0"
            raise CapabilityError(
                f"Outputs: part = {self.part!r}: the module returns a {kind} of {known}"
            ) from error


class Steps(nn.Module):
    """Apply a module at every step of inputs ``[B, T, ...]`` and return ``[B, T, ...]``.

    ``y[t] = module(x[t])``, for neurons and networks of one step, which keep their state from call
    to call or pass it on.

    Args:
        module: takes one step, ``[B, ...]``.
        reset: how a module that keeps a state begins a trial: the name of its modules' method
            (snnTorch's "reset_mem", SpikingJelly's "reset") or a function of the module.
        steps: inputs ``[B, ...]`` have no steps and are shown so many times.
        passes_state: the module takes a state behind its input, None at first, and returns it
            behind its output.
        part: of a tuple that the module returns, its output.

    Raises:
        CapabilityError: no module has such a method, or inputs have no steps.
    """

    def __init__(
        self,
        module: nn.Module,
        reset: Reset | None = None,
        steps: int | None = None,
        passes_state: bool = False,
        part: int = 0,
    ) -> None:
        super().__init__()
        if steps is not None and steps < 1:
            raise CapabilityError(f"Steps: steps = {steps}: one at least")
        self.module, self.steps = module, steps
        self.passes_state, self.part = passes_state, part
        self._begin = None if reset is None else ResetBefore(module, reset)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the module makes of every step."""
        if self.steps is None and inputs.dim() < 2:
            raise CapabilityError(f"Steps: inputs {list(inputs.shape)} have no steps [B, T, ...]")
        if self._begin is not None:
            self._begin(self.module)
        given = inputs.unbind(1) if self.steps is None else [inputs] * self.steps
        state: tuple[Any, ...] = (None,)
        found = []
        for now in given:
            value = self.module(now, *state) if self.passes_state else self.module(now)
            if self.passes_state:
                value, *rest = value
                state = tuple(rest)
            found.append(value[self.part] if isinstance(value, (tuple, list)) else value)
        return torch.stack(found, 1)

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return "" if self.steps is None else f"steps={self.steps}"
