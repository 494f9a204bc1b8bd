"""A task of angles: which way, on a circle."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from biograd.errors import DataError
from biograd.tasks import Metrics, Task
from biograd.tasks.task import refuse


@dataclasses.dataclass(frozen=True)
class Direction(Task):
    """An angle in radians, targets ``[B]``; two outputs are its cosine and its sine.

    The loss is ``|o - (cos y, sin y)|^2 / 2``, the metric the mean angle between both in degrees.
    """

    outputs: int = 2

    headline: ClassVar[str] = "degrees"
    better: ClassVar[str] = "lower"

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        return {"outputs": 2}

    @property
    def width(self) -> int:
        return 1

    def check(self, targets: Tensor, where: str) -> None:
        if not targets.is_floating_point() or targets.dim() != 1:
            found = f"{targets.dtype} {list(targets.shape)}"
            raise DataError(f"{where}: targets are {found}, the task needs one angle a row")
        refuse(~targets.isfinite(), where, "an angle is not finite")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        there = torch.stack((targets.cos(), targets.sin()), -1).to(outputs.dtype)
        return 0.5 * (outputs - there).square().sum(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        apart = torch.atan2(outputs[:, 1], outputs[:, 0]) - targets
        error = torch.atan2(apart.sin(), apart.cos()).abs().rad2deg()
        return {"degrees": (error, torch.ones_like(error))}
