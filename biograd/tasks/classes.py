"""One of ``K`` classes, of an example or in every step."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from biograd.checking import NotNegative
from biograd.errors import DataError, RecipeError
from biograd.tasks.task import MISSING, Metrics, Task, aligned, check_some, counted, refuse, shares


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``-log softmax(outputs)[target]`` for every row; real targets are probabilities."""
    targets = targets if targets.is_floating_point() else targets.long()
    if targets.shape not in (outputs.shape[:1], outputs.shape):
        raise DataError(
            f"targets {list(targets.shape)} are no classes for outputs {list(outputs.shape)}: give "
            f"one number for each example, [{len(outputs)}]"
        )
    if targets.is_floating_point() and targets.shape != outputs.shape:
        raise DataError(f"targets {targets.dtype}: classes are whole numbers: targets.long()")
    try:
        return functional.cross_entropy(outputs, targets, reduction="none")
    except IndexError as error:
        raise _outside(outputs, targets) from error


def _outside(outputs: Tensor, targets: Tensor) -> DataError:
    """Return what is said of a class that is none, which torch finds while it computes."""
    wrong = targets[((targets < 0) & (targets != MISSING)) | (targets >= outputs.shape[-1])]
    return DataError(
        f"targets: class {int(wrong.flatten()[0]) if wrong.numel() else MISSING}, known are 0 to "
        f"{outputs.shape[-1] - 1}, the outputs of the network"
    )


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``|outputs - one_hot(target)|^2 / 2`` for every row.

    Real targets are vectors; for a single output the targets are numbers, whole or not.
    """
    if targets.is_floating_point() or outputs.shape[-1] == 1 or targets.dim() >= outputs.dim():
        targets = aligned(outputs, targets)
    else:
        try:
            targets = functional.one_hot(targets.long(), outputs.shape[-1])
        except RuntimeError as error:
            raise _outside(outputs, targets) from error
    return 0.5 * (outputs - targets.to(outputs.dtype)).square().flatten(1).sum(1)


def check_no_vectors(targets: Tensor, where: str) -> None:
    """Refuse classes that are given as one-hot vectors ``[N, K]``.

    Raises:
        DataError: every row is one.
    """
    if targets.dim() != 2 or targets.shape[1] < 2 or not len(targets):
        return
    if bool(((targets == 0) | (targets == 1)).all()) and bool((targets.sum(1) == 1).all()):
        raise DataError(
            f"{where}: every row of {list(targets.shape)} is a one-hot vector: give numbers of "
            "classes, targets.argmax(1), or task = 'multi_label'"
        )


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}


@dataclasses.dataclass(frozen=True)
class Classes(Task):
    """One of ``K`` classes: targets int64 ``[B]``; timed also ``[B, T]``, ``MISSING`` unknown.

    Losses: cross-entropy, or ``|o - one_hot(y)|^2 / 2``; of a timed task the mean over the steps
    whose class is known.  An untimed class of a timed task holds in every step.

    Args:
        loss: "cross_entropy" or "squared_error".
        class_weights: a factor on the loss of the examples of each class; the mean over a batch
            is not normalised by them, so that no example's loss depends on the others.
    """

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    class_weights: tuple[NotNegative, ...] = ()

    headline: ClassVar[str] = "accuracy"
    better: ClassVar[str] = "higher"
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights and self.outputs not in (0, len(self.class_weights)):
            raise RecipeError(
                f"task: class_weights: {len(self.class_weights)} numbers for {self.outputs} classes"
            )

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is not a class from 0 to ``K - 1``."""
        if targets.dtype != torch.int64:
            raise DataError(f"{where}: classes are {targets.dtype}, the task needs int64")
        if targets.dim() not in (1, 1 + self.timed):
            owed = "[N] or [N, steps]" if self.timed else "[N]"
            raise DataError(f"{where}: classes are {list(targets.shape)}, the task needs {owed}")
        check_no_vectors(targets, where)
        wrong = (targets < 0) | (targets >= self.outputs)
        if self.timed and targets.dim() == 2:
            check_some(targets != MISSING, where)
            wrong &= targets != MISSING
        for value in targets[wrong][:1]:
            refuse(wrong, where, f"class {int(value)}, known are 0 to {self.outputs - 1}")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        if self.timed:
            return super().losses(outputs, targets)
        found = LOSSES[self.loss](outputs, targets)
        return found * self._weights(targets, found) if self.class_weights else found

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every step over their number, ``[B, T]``."""
        targets = self._spread(outputs, targets)
        mask = targets != MISSING
        safe = targets.where(mask, 0)
        found = LOSSES[self.loss](outputs.flatten(0, 1), safe.flatten()).view_as(safe) * mask
        return shares(found * self._weights(safe, found) if self.class_weights else found, mask)

    def part(
        self, targets: Tensor, first: int, steps: int, trial: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return the targets of some steps, and their share in the mean over the trial."""
        if not self.timed:
            return None
        mask = (targets[:, None].expand(-1, trial) if targets.dim() == 1 else targets) != MISSING
        own = targets if targets.dim() == 1 else targets[:, first : first + steps]
        return own, counted(mask, first, steps)

    def _spread(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets[:, None].expand(outputs.shape[:2]) if targets.dim() == 1 else targets

    def _weights(self, targets: Tensor, like: Tensor) -> Tensor:
        return like.new_tensor(self.class_weights)[targets]

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the accuracy: the share of right answers, or of right steps."""
        if targets.is_floating_point():
            return {}  # vectors in place of classes
        targets = self._spread(outputs, targets) if self.timed else targets
        right, mask = outputs.argmax(-1) == targets, targets != MISSING
        return {
            "accuracy": (right.reshape(len(right), -1).sum(1), mask.reshape(len(mask), -1).sum(1))
        }

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the class; a course of classes has none."""
        return targets if targets.dim() == 1 else None

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return the number of classes, and whether they change in time."""
        given = torch.as_tensor(targets)
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise DataError("classes are whole numbers, some of these are not finite")
        timed = {"timed": True} if given.dim() > 1 else {}
        return {"outputs": int(given.max()) + 1 if given.numel() else 0} | timed
