"""A reward for what a network has done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from biograd.errors import DataError
from biograd.tasks.classes import Classes
from biograd.tasks.task import MISSING, ByFunction, Metrics, per_example, refuse


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output is that of the class, else 0."""
    return (outputs.argmax(-1) == _classes(outputs, targets)).to(outputs.dtype)


def probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of the class, ``softmax(outputs)[target]``."""
    classes = _classes(outputs, targets)
    safe = classes.where(classes != MISSING, 0).unsqueeze(-1)
    return outputs.softmax(-1).gather(-1, safe).squeeze(-1) * (classes != MISSING)


def _classes(outputs: Tensor, targets: Tensor) -> Tensor:
    steps = outputs.dim() == 3 and targets.dim() == 1
    return targets[:, None].expand(outputs.shape[:2]) if steps else targets


REWARDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "correct": correct,
    "probability": probability,
}


@dataclasses.dataclass(frozen=True)
class Reward(ByFunction):
    """A number per example that tells how good the outputs were, without a derivative.

    ``L = -R``; a reward of every step, ``[B, T]``, counts as their sum, and credit for a step comes
    from its own and later ones.  Rules that need a graph refuse the task.

    Args:
        reward: "correct" (1 if the largest output is that of the class, else 0), "probability" (of
            the class), or a function of outputs and targets.
    """

    reward: Literal["correct", "probability"] | Callable[..., Any] = "correct"

    headline: ClassVar[str] = "reward"
    better: ClassVar[str] = "higher"
    differentiable: ClassVar[bool] = False

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether the reward is that of a class."""
        return isinstance(self.reward, str)

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is no class, if the reward is of one; else what is not finite."""
        if not self.whole:
            refuse(targets.isinf(), where, "a target is infinite")
            return
        if targets.dtype != torch.int64:
            raise DataError(f"{where}: classes are {targets.dtype}, the reward needs int64")
        wrong = (targets < 0) | (targets >= self.outputs)
        refuse(wrong, where, f"a class is from 0 to {self.outputs - 1}")

    def by_step(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-R``, ``[B]`` or ``[B, T]``, without a graph."""
        function = REWARDS[self.reward] if isinstance(self.reward, str) else self.reward
        found = per_example(function, "reward", outputs.detach(), targets).detach()
        return -found.to(outputs.dtype)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the reward an example; if it is of a class, also the accuracy."""
        found = -self.losses(outputs, targets)
        reward: Metrics = {"reward": (found, torch.ones_like(found))}
        if self.whole:
            reward |= Classes(self.outputs, self.timed).metrics(outputs, targets)
        return reward

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the class, if the reward is of one."""
        return targets if self.whole and targets.dim() == 1 else None

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return the number of classes, or of numbers."""
        given = torch.as_tensor(targets)
        if given.is_floating_point():
            return super().fitting(given)
        return {"outputs": int(given.max()) + 1 if given.numel() else 0}
