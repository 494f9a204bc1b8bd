"""Environments for tests, and networks that decide in them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biograd.tasks import Decisions

WALK = torch.tensor([[1.0, 0.5], [-1.0, 1.5], [0.3, -2.0], [2.0, 1.0]], dtype=torch.float64)
"""What is seen in each of four places."""
PAYS = torch.tensor([[1.0, -0.5], [0.0, 2.0], [-1.0, 0.5], [3.0, 0.0]], dtype=torch.float64)
"""What each action earns there."""


class Walk:
    """Two steps: the action in place 0 leads to place 1, 2 or 3, where another is taken."""

    observation, actions, continuous, horizon = (2,), 2, False, 2

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.place = torch.zeros_like(seed)
        return WALK[self.place], {}

    def step(self, action: Tensor) -> tuple[Tensor, ...]:
        reward = PAYS[self.place, action]
        self.place = torch.where(self.place == 0, 1 + 2 * action, self.place)
        over = self.place < 0
        return WALK[self.place], reward, over, over, {}  # type: ignore[return-value]


class PaidByChance(Walk):
    """A walk whose rewards follow from the seed alone."""

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.pay = torch.sin(1.0 + seed.double())
        return super().reset(seed)

    def step(self, action: Tensor) -> tuple[Tensor, ...]:
        seen, _reward, one, other, info = super().step(action)
        return seen, self.pay, one, other, info  # type: ignore[return-value]


class PaidAtOnce(Walk):
    """A walk of four steps that is paid for the first alone."""

    horizon = 4

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.time = 0
        return super().reset(seed)

    def step(self, action: Tensor) -> tuple[Tensor, ...]:
        seen, reward, one, other, info = super().step(action)
        self.time += 1
        return seen, reward * (self.time == 1), one, other, info  # type: ignore[return-value]


def space(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


class Corridor:
    """One episode at a time, as gymnasium's: five places, to the right it pays."""

    observation_space, action_space = space(n=5), space(n=2, start=1)
    spec = space(max_episode_steps=12, reward_threshold=1.0)

    def reset(self, *, seed: int) -> tuple[int, dict[str, Any]]:
        self.place = 1 + seed % 2
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action in (1, 2)
        self.place += 2 * action - 3
        return self.place, float(self.place == 4), self.place in (0, 4), False, {}


class Reach:
    """Numbers as actions, within bounds, that should undo what is seen."""

    observation_space = space(shape=(2,))
    action_space = space(shape=(2,), low=np.full(2, -1.0), high=np.full(2, 1.0), dtype=np.float32)
    spec = space(max_episode_steps=4)

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]:
        self.state = np.array([np.sin(seed), np.cos(seed)])
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32 and (np.abs(action) <= 1).all()
        self.state = self.state + 0.5 * action
        return self.state, -float(np.square(self.state).sum()), False, False, {}


class Deciding(nn.Module):
    """Decides by what it sees."""

    def __init__(self, inputs: int = 2, actions: int = 2, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, actions)

    def forward(self, seen: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(seen)))


class Remembering(nn.Module):
    """Decides by what it has seen."""

    def __init__(self, inputs: int = 3, actions: int = 2, width: int = 8) -> None:
        super().__init__()
        self.w, self.r = nn.Linear(inputs, width), nn.Linear(width, width)
        self.o = nn.Linear(width, actions)

    def forward(self, seen: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = seen.new_zeros(len(seen), self.r.in_features) if state is None else state
        state = torch.tanh(self.w(seen) + self.r(state))
        return self.o(state), state


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a network in double precision whose weights are drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def seeds(count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of episodes."""
    return torch.arange(first, first + count)[:, None].double(), torch.zeros(count, 1).long()


def noted(task: Decisions, outputs: Tensor, action: Tensor, worth: Tensor) -> Tensor:
    """Return what episodes of one step would have noted, ``[B, 1, _]``."""
    picked = worth.gather(1, action[:, None])[:, 0]
    expected = (outputs.detach().softmax(1) * worth).sum(1)
    ones = torch.ones_like(picked)
    notes = torch.stack((picked, ones, ones, worth.amax(1) - picked, expected), 1)
    return torch.cat((outputs, action[:, None].to(outputs), notes), 1)[:, None]
