"""Environments that take one episode at a time, gymnasium's for instance, in rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biograd.environments.interface import Step
from biograd.errors import CapabilityError, RecipeError


class GymnasiumRows:
    """A row for each episode, each an environment of its own, stepped one after the other.

    What they return is that of gymnasium: ``reset(seed=)`` observation and info, ``step(action)``
    observation, reward, terminated, truncated and info.  ``action_space`` has ``n`` (from
    ``start`` on), or the bounds ``low`` and ``high`` of numbers, which are obeyed;
    ``observation_space`` has a ``shape``, or ``n`` states, which are shown one-hot.

    Args:
        environment: is copied for every row but the first, or made anew by ``make``.
        make: returns another one.
        horizon: most steps of an episode; 0: as its ``spec`` says.
        name: opens every message.

    Raises:
        RecipeError: spaces of other kinds, or nobody says how long an episode can be.
    """

    def __init__(
        self,
        environment: Any,
        make: Callable[[], Any] | None = None,
        horizon: int = 0,
        name: str = "",
    ) -> None:
        self.name = name or type(environment).__name__
        self.rows, self.make = [environment], make
        if hasattr(environment, "num_envs"):
            raise RecipeError(f"{self.name}: holds {environment.num_envs} rows: give a single one")
        self._look(environment)
        spec = getattr(environment, "spec", None)
        self.horizon = horizon or int(getattr(spec, "max_episode_steps", None) or 0)
        if not self.horizon:
            raise RecipeError(
                f"{self.name}: nothing says how long an episode can be: settings.steps"
            )
        limit = getattr(spec, "reward_threshold", None)
        self.solved = None if limit is None else float(limit)

    def _look(self, environment: Any) -> None:
        """Learn what observations and actions are."""
        seen, acts = environment.observation_space, environment.action_space
        self.states = int(getattr(seen, "n", 0))
        shape = (self.states,) if self.states else getattr(seen, "shape", None)
        if not shape or (self.states and getattr(seen, "shape", ()) not in ((), None)):
            raise RecipeError(
                f"{self.name}: observations are {seen}: numbers of one shape, or a number of "
                "states, are taken: wrap it (gymnasium.wrappers.FlattenObservation)"
            )
        self.observation = tuple(int(size) for size in shape)
        self.first, self.low, self.high = int(getattr(acts, "start", 0)), None, None
        whole = hasattr(acts, "n") and isinstance(acts.n, int | np.integer)
        self.continuous = not whole
        if whole:
            self.actions = int(acts.n)
            return
        if not hasattr(acts, "low") or len(acts.shape) != 1:
            raise RecipeError(
                f"{self.name}: actions are {acts}: one choice, or one row of numbers, is taken"
            )
        self.actions, self.low, self.high = int(acts.shape[0]), acts.low, acts.high
        self.kind = getattr(acts, "dtype", np.float32)

    def _grow(self, rows: int) -> None:
        while len(self.rows) < rows:
            try:
                self.rows.append(self.make() if self.make else copy.deepcopy(self.rows[0]))
            except Exception as error:
                raise CapabilityError(
                    f"{self.name}: cannot be copied for another row ({error}): give a function "
                    "that makes it"
                ) from error

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Begin an episode in each row."""
        self._grow(len(seed))
        self.over = [False] * len(seed)
        self.device = seed.device
        found = [row.reset(seed=one) for row, one in zip(self.rows, seed.tolist(), strict=False)]
        for one in found:
            if not (isinstance(one, tuple) and len(one) == 2):
                raise CapabilityError(
                    f"{self.name}: reset(seed=) returned {type(one).__name__}, not an observation "
                    "and a dict: gymnasium's own form is taken"
                )
        self.last = [self._observed(one[0]) for one in found]
        return self._stacked(self.last), {}

    def _observed(self, value: Any) -> np.ndarray[Any, Any]:
        if self.states:
            return np.eye(self.states)[int(value)]
        return np.asarray(value, dtype=np.float64).reshape(self.observation)

    def _stacked(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float64), device=self.device)

    def _given(self, action: Any) -> Any:
        """Return an action as the environment takes it."""
        if not self.continuous:
            return int(action) + self.first
        return np.clip(action, self.low, self.high).astype(self.kind)

    def step(self, action: Tensor) -> Step:
        """Take an action in each row whose episode goes on."""
        rewards = np.zeros(len(action))
        ends = np.zeros((2, len(action)), dtype=bool)
        for row, one in enumerate(action.detach().cpu().numpy()):
            if self.over[row]:
                ends[0, row] = True
                continue
            found = self.rows[row].step(self._given(one))
            if not (isinstance(found, tuple) and len(found) == 5):
                raise CapabilityError(
                    f"{self.name}: step(action) returned {type(found).__name__} of "
                    f"{len(found) if isinstance(found, tuple) else 1}, not observation, reward, "
                    "terminated, truncated and info: gymnasium's own form is taken"
                )
            self.last[row] = self._observed(found[0])
            rewards[row], ends[0, row], ends[1, row] = found[1], found[2], found[3]
            self.over[row] = bool(found[2] or found[3])
        terminated, truncated = torch.as_tensor(ends, device=self.device)
        return self._stacked(self.last), self._stacked(rewards), terminated, truncated, {}
