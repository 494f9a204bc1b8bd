"""Decisions whose reward comes when all is over."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from biograd.checking import Range, validate
from biograd.environments.chance import uniform, whole
from biograd.environments.interface import Step


class DelayedReward:
    """Signs are shown one after the other, and the answers are paid in the end, all in one.

    The right answer to a sign is its number; the reward of the last step is the share of right
    answers, that of all others 0.  With ``recall`` a sign is shown in the first step alone, the
    answer counts in the last, and a mark shows when: only a network with a memory can know it.
    Inputs: a channel for each sign, and one that is 1 in the step that counts.

    Args:
        signs: number of signs and of answers.
        steps: ``T``.
        noise: standard deviation of what is added to each channel.
        recall: ask for the first sign in the last step.
    """

    continuous, solved = False, 1.0
    observation: tuple[int, ...]

    def __init__(
        self,
        signs: Annotated[int, Range(2)] = 2,
        steps: Annotated[int, Range(2, 10**4)] = 10,
        noise: Annotated[float, Range(0.0)] = 0.0,
        recall: bool = False,
    ) -> None:
        validate(DelayedReward, locals())
        self.observation, self.actions, self.horizon = (signs + 1,), signs, steps
        self.noise, self.recall = noise, recall

    def condition(self, seed: Tensor) -> Tensor:
        """Return the first sign."""
        return whole(seed, "sign", 0, self.actions)

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Show the first sign in each row."""
        self.seed, self.time = seed, 0
        self.right = torch.zeros(len(seed), dtype=torch.float64, device=seed.device)
        self._draw()
        return self._seen(), {}

    @property
    def _last(self) -> bool:
        return self.time == self.horizon - 1

    def _draw(self) -> None:
        """Draw the sign whose number is the right answer in this step."""
        self.sign = whole(self.seed, "sign", 0 if self.recall else self.time, self.actions)

    def _seen(self) -> Tensor:
        shown = torch.nn.functional.one_hot(self.sign, self.actions).double()
        if self.recall and self.time:
            shown = torch.zeros_like(shown)
        mark = torch.full_like(shown[:, :1], float(self._last or not self.recall))
        clean = torch.cat((shown, mark), 1)
        if not self.noise:
            return clean
        draws = torch.special.ndtri(uniform(self.seed, "noise", self.time, clean.shape[1]))
        return clean + self.noise * draws

    def step(self, action: Tensor) -> Step:
        """Answer in each row."""
        right = (action == self.sign).double()
        if self.recall:
            right = right * self.horizon * self._last
        self.right = self.right + right / self.horizon
        over = torch.full_like(action, self._last, dtype=torch.bool)
        reward = torch.where(over, self.right, torch.zeros_like(self.right))
        self.time += 1
        if not bool(over.all()):
            self._draw()
        return self._seen(), reward, over, over & False, {}
