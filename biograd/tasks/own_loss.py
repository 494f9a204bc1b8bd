"""A loss of the user's own, or of torch's by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biograd.tasks.task import ByFunction, Metrics, Task, Totals, per_example, refuse


def none(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return zeros: no loss."""
    return outputs.new_zeros(len(outputs))


@dataclasses.dataclass(frozen=True)
class OwnLoss(ByFunction):
    """A user's own loss: a function of outputs and targets that returns one value per example.

    ``[B]``, or ``[B, T]`` of outputs in time, which is summed.  One that returns no graph is
    served by the rules that need none.

    Args:
        loss: the function.
        task: whose targets and metrics these are; None: the function alone knows the targets.
    """

    outputs: int = 0
    loss: Callable[..., Any] = none
    task: Task | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("outputs", "timed", "headline", "better", "whole") if self.task else ():
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def width(self) -> int:
        """The number of the task's targets."""
        return super().width if self.task is None else self.task.width

    def pack(self, targets: Any, where: str) -> Tensor:
        """Return targets as the tensor of the task."""
        return (super().pack if self.task is None else self.task.pack)(targets, where)

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what the task refuses; without one infinite targets: the function knows others."""
        if self.task is not None:
            self.task.check(targets, where)
        elif targets.is_floating_point():
            refuse(targets.isinf(), where, "a target is infinite")

    def check_outputs(self, outputs: Tensor) -> None:
        """Refuse what the task refuses; without one take any outputs: the function knows them."""
        if self.task is not None:
            self.task.check_outputs(outputs)

    def by_step(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what the function finds, ``[B]`` or ``[B, T]``."""
        return per_example(self.loss, "loss", outputs, targets)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return targets in the outputs' shape."""
        return (super().vectors if self.task is None else self.task.vectors)(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the task's metrics."""
        return {} if self.task is None else self.task.metrics(outputs, targets)

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the task's figures."""
        return (super().figures if self.task is None else self.task.figures)(totals)

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the task's groups."""
        return None if self.task is None else self.task.strata(targets)
