"""A bandit with several arms."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from biograd.checking import Count, NotNegative, Range, validate
from biograd.environments.chance import normal
from biograd.environments.interface import Step
from biograd.randomness import generator


class Bandit:
    """Arms whose rewards are normal, ``R ~ N(q_a, noise^2)``, with ``q_a ~ N(mean, spread^2)``.

    The observation is 1.

    Args:
        arms: number of actions.
        mean, spread: of the arms' values, which are drawn once, from ``world``.
        noise: standard deviation of a reward.
        steps: pulls of an episode.
        world: seed of the arms' values.

    Source: Sutton and Barto, Reinforcement Learning (2018), section 2.8, with a mean of 4.
    """

    continuous = False
    observation: tuple[int, ...] = (1,)

    def __init__(
        self,
        arms: Annotated[int, Range(2)] = 10,
        mean: float = 4.0,
        spread: NotNegative = 1.0,
        noise: NotNegative = 1.0,
        steps: Count = 1,
        world: Annotated[int, Range(0)] = 0,
    ) -> None:
        validate(Bandit, locals())
        self.actions, self.horizon, self.noise = arms, steps, noise
        stream = generator(world, "bandit")
        self.worth = mean + spread * torch.randn(arms, generator=stream, dtype=torch.float64)

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Begin an episode in each row."""
        self.seed, self.time = seed, 0
        self.q = self.worth.to(seed.device)
        return self._seen(), {}

    def _seen(self) -> Tensor:
        return torch.ones(len(self.seed), 1, dtype=torch.float64, device=self.seed.device)

    def values(self) -> Tensor:
        """Return ``q``, ``[B, arms]``."""
        return self.q.expand(len(self.seed), -1)

    def step(self, action: Tensor) -> Step:
        """Pull an arm in each row."""
        noise = normal(self.seed, "reward", self.time, 1)[:, 0]
        self.time += 1
        over = torch.full_like(action, self.time >= self.horizon, dtype=torch.bool)
        return self._seen(), self.q[action] + self.noise * noise, over, over & False, {}
