"""Examples, or steps, that weigh differently."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import torch
from torch import Tensor

from biograd.checking import Range
from biograd.errors import DataError
from biograd.tasks.task import Metrics, Task, Totals, natural, refuse


@dataclasses.dataclass(frozen=True)
class Weighted(Task):
    """A task whose examples, or steps, weigh differently: the targets' last column is the weight.

    The loss of an example is ``w L``, of a step ``w[t] L[t]``; metrics count with the same weight,
    so that a weight of 2 is a row twice and 0 a row that is absent (but in the number of rows by
    which a batch's mean divides).  ``pack`` takes ``(targets, weights)``.

    Args:
        task: the task itself.
    """

    outputs: Annotated[int, Range(0)] = 0
    task: Task = dataclasses.field(default_factory=lambda: Task(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("outputs", "timed", "headline", "better", "differentiable"):
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def width(self) -> int:
        """The number of the task's own targets, and one."""
        return self.task.width + 1

    def split(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's own targets, and the weights ``[B]`` or ``[B, T]``."""
        return natural(self.task, targets[..., :-1]), targets[..., -1]

    def pack(self, targets: Any, where: str) -> Tensor:
        """Return ``(targets, weights)`` as one tensor in double precision, ``[N, (T,) width]``.

        Raises:
            DataError: no weights, or of another shape.
        """
        if isinstance(targets, Tensor):
            return targets
        own = self.task.pack(targets[0], where)
        self.task.check(own, where)
        weights = torch.as_tensor(targets[1]).double()
        if own.dim() < 1 + self.timed:
            raise DataError(f"{where}: weights need a target for every step, [N, steps]")
        if own.dim() == 1 + self.timed:
            own = own.unsqueeze(-1)
        if self.timed and weights.dim() == 1:
            weights = weights[:, None].expand(own.shape[:2])
        if weights.shape != own.shape[:-1]:
            raise DataError(
                f"{where}: weights are {list(weights.shape)}, the targets {list(own.shape)}"
            )
        return torch.cat((own.double(), weights.unsqueeze(-1)), -1)

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what the task refuses, and weights below 0."""
        own, weights = self.split(targets)
        self.task.check(own, where)
        wrong = ~(weights >= 0) | weights.isinf()
        refuse(wrong, where, "a weight is not a number of at least 0")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted losses, ``[B]``."""
        own, weights = self.split(targets)
        if self.timed:
            steps = self.stepwise(outputs, targets)
            places = torch.arange(steps.shape[1], device=steps.device)
            later = self.task.discount**places
            return steps.sum(1) if self.task.discount == 1 else steps @ later.to(steps.dtype)
        return self.task.losses(outputs, own) * weights.to(outputs.dtype)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted losses of the steps, ``[B, T]``."""
        own, weights = self.split(targets)
        return self.task.stepwise(outputs, own) * weights.to(outputs.dtype)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the task's targets in the outputs' shape, times the weights."""
        own, weights = self.split(targets)
        found = self.task.vectors(outputs, own)
        return found * weights.view(*weights.shape, *[1] * (found.dim() - weights.dim())).to(found)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the task's metrics; an example's weight is the mean of those of its steps."""
        own, weights = self.split(targets)
        factor = weights.double() if weights.dim() == 1 else weights.double().mean(1)
        return {
            name: tuple(p.double() * factor.view(-1, *[1] * (p.dim() - 1)) for p in parts)
            for name, parts in self.task.metrics(outputs, own).items()
        }

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the task's figures."""
        return self.task.figures(totals)

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the task's groups."""
        return self.task.strata(self.split(targets)[0])
