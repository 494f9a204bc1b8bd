"""A loss of the user's own, or of torch's by its name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from biograd.errors import CapabilityError
from biograd.tasks.task import (
    MISSING,
    ByFunction,
    Metrics,
    Task,
    Totals,
    aligned,
    per_example,
    refuse,
    shares,
)


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


OF_NUMBERS: dict[str, Callable[..., Tensor]] = {
    "mse_loss": functional.mse_loss,
    "l1_loss": functional.l1_loss,
    "smooth_l1_loss": functional.smooth_l1_loss,
    "huber_loss": functional.huber_loss,
    "binary_cross_entropy": functional.binary_cross_entropy,
    "binary_cross_entropy_with_logits": functional.binary_cross_entropy_with_logits,
    "multilabel_soft_margin_loss": functional.binary_cross_entropy_with_logits,
    "soft_margin_loss": functional.soft_margin_loss,
    "poisson_nll_loss": functional.poisson_nll_loss,
    "kl_div": functional.kl_div,
}
"""Of targets in the outputs' shape; classes are one-hot vectors.  (The soft margin of several
labels is the mean over the labels of what stands here.)"""
OF_CLASSES: dict[str, Callable[..., Tensor]] = {
    "nll_loss": functional.nll_loss,
    "multi_margin_loss": functional.multi_margin_loss,
}
"""Of numbers of classes; ``cross_entropy`` is the task's own."""
NAMES = (*OF_NUMBERS, *OF_CLASSES)


def of_torch(name: str, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return a loss of ``torch.nn.functional``: ``[B]``, or ``[B, T]`` in time.

    The mean over the outputs whose target is known, so that the mean over a batch is torch's::

        L_b = 1 / K sum_k l(o_bk, y_bk),   L_bt = 1 / (K T_b) sum_k l(o_btk, y_btk)

    Args:
        name: of ``NAMES``.
        task: whose targets they are.

    Raises:
        CapabilityError: a loss of classes for a task of numbers.
    """
    if name in OF_CLASSES and not task.whole:
        raise CapabilityError(f"training.loss = {name!r}: is for classes: take another loss")
    by = _of_classes if name in OF_CLASSES else _of_numbers
    return functools.partial(by, {**OF_CLASSES, **OF_NUMBERS}[name], task)


def _of_classes(
    function: Callable[..., Tensor], task: Task, outputs: Tensor, targets: Tensor
) -> Tensor:
    if task.timed and targets.dim() == 1:
        targets = targets[:, None].expand(outputs.shape[:2])
    mask = targets != MISSING
    safe = targets.where(mask, 0)
    found = function(outputs.flatten(0, -2), safe.flatten(), reduction="none").view_as(safe) * mask
    return shares(found, mask) if task.timed else found


def _of_numbers(
    function: Callable[..., Tensor], task: Task, outputs: Tensor, targets: Tensor
) -> Tensor:
    if task.whole:
        mask = (targets != MISSING).unsqueeze(-1)
        mask = mask if mask.dim() == outputs.dim() else mask.unsqueeze(1)
        goal, mask = task.vectors(outputs, targets), mask.expand(outputs.shape)
    else:
        goal = aligned(outputs, targets).to(outputs.dtype)
        mask = ~goal.isnan()
        goal = goal.where(mask, torch.zeros_like(goal))
    if function is functional.soft_margin_loss:
        goal = 2 * goal - 1  # it takes -1 and 1
    found = function(outputs, goal, reduction="none")
    found = found.where(mask, torch.zeros_like(found))
    mean = found.sum(-1) / mask.sum(-1).clamp_min(1)
    return shares(mean, mask.any(-1)) if task.timed else mean
