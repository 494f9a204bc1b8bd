"""A network in an environment, as a module whose outputs are whole episodes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from biograd.environments.chance import uniform
from biograd.environments.interface import Environment
from biograd.errors import CapabilityError, DataError
from biograd.tasks import Decisions


class Episodes(nn.Module):
    """Let a network decide, step by step, in a row of an environment for each example.

    Inputs are the seeds of the episodes, ``[B, 1]``, outputs ``[B, T, K + actions + 5]``: what the
    network returned, the action, and the task's notes (``Decisions.noted``).  All that is random
    follows from the seed, so that every copy of an episode meets the same chance.

    The network is called once a step with the observations ``[B, *shape]`` and returns ``[B, K]``.
    If its forward has a second argument ``state``, it is given what it returned last, None at
    first, and returns outputs and state.  In training every episode takes ``T`` steps, those that
    follow its end without observation or reward; in evaluation it ends with the last of them.

    Args:
        network: decides.
        environment: gives observations and rewards.
        task: says what an action is.

    Raises:
        CapabilityError: the network returns something else.
        DataError: the environment returns something else.
    """

    def __init__(self, network: nn.Module, environment: Environment, task: Decisions) -> None:
        super().__init__()
        self.policy, self.environment, self.task = network, environment, task
        parameters = inspect.signature(network.forward).parameters
        self.handed = "state" in parameters and len(parameters) > 1
        self.name = getattr(environment, "name", type(environment).__name__)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return an episode for each seed, ``[B, T, K + actions + 5]``."""
        dtype = next(self.policy.parameters()).dtype
        seed = inputs.reshape(len(inputs), -1)[:, 0].round().long()
        seen = self._observed(self.environment.reset(seed), dtype, 0)
        alive = torch.ones(len(seed), dtype=torch.bool, device=seed.device)
        state: Any = None
        steps = list[Tensor]()
        for time in range(self.environment.horizon):
            outputs, state = self._decide(seen, state)
            draws = uniform(seed, "action", time, self.task.outputs)
            action = self.task.act(outputs.detach(), draws)
            notes, seen, over = self._stepped(outputs, action, alive, time)
            steps.append(torch.cat((outputs, _columns(action, dtype), notes), 1))
            alive = alive & ~over
            if not self.training and not bool(alive.any()):
                break
            seen = seen * alive.view(-1, *[1] * (seen.dim() - 1))
        found = torch.stack(steps, 1)
        rest = self.environment.horizon - len(steps)
        return nn.functional.pad(found, (0, 0, 0, rest)) if rest else found

    def _decide(self, seen: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return outputs ``[B, K]`` and the state that the network hands on."""
        found = self.policy(seen, state) if self.handed else self.policy(seen)
        if self.handed:
            if not (isinstance(found, tuple) and len(found) == 2):
                raise CapabilityError(
                    f"{type(self.policy).__name__} has an argument state and returned "
                    f"{type(found).__name__}: it must return outputs and the next state"
                )
            found, state = found
        due = (len(seen), self.task.outputs)
        if not isinstance(found, Tensor) or tuple(found.shape) != due:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CapabilityError(
                f"{type(self.policy).__name__} returned {got} for observations "
                f"{list(seen.shape)}: {self.name} needs {list(due)}, one number for each action, "
                "in every step"
            )
        return found, state

    def _stepped(
        self, outputs: Tensor, action: Tensor, alive: Tensor, time: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step; return its notes ``[B, 5]``, observations, and which episodes ended."""
        known, regret, expected = self._worth(outputs, action)
        found = self.environment.step(action)
        if not (isinstance(found, tuple) and len(found) == 5):
            raise DataError(
                f"{self.name}: step must return observations, rewards, terminated, truncated and a "
                "dict"
            )
        rewards, ends = found[1].to(outputs.dtype), found[2] | found[3]
        if rewards.shape != alive.shape or ends.shape != alive.shape:
            raise DataError(
                f"{self.name}: rewards {list(rewards.shape)}, ends {list(ends.shape)} for "
                f"{len(alive)} rows: one for each"
            )
        _finite(rewards[alive], f"{self.name}, step {time}: a reward")
        seen = self._observed((found[0], {}), outputs.dtype, time + 1, alive & ~ends)
        notes = (rewards.where(alive, 0), alive, known, regret, expected)
        return torch.stack([note.to(outputs.dtype) for note in notes], 1), seen, ends

    def _worth(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether it is known what actions are worth, the regret, and what is expected."""
        values = getattr(self.environment, "values", None)
        if values is None or self.task.continuous:
            none = torch.zeros(len(outputs), device=outputs.device, dtype=outputs.dtype)
            return none, none, none
        worth = values().to(outputs.dtype)
        regret = worth.amax(1) - worth.gather(1, action[:, None])[:, 0]
        expected = (outputs.detach().softmax(1) * worth).sum(1)
        return torch.ones_like(regret), regret, expected

    def _observed(
        self, found: Any, dtype: torch.dtype, time: int, rows: Tensor | None = None
    ) -> Tensor:
        """Return observations as the network takes them; those of ended episodes are not looked at.

        Raises:
            DataError: another shape, or they are not finite.
        """
        seen = found[0] if isinstance(found, tuple) and len(found) == 2 else None
        due = list(self.environment.observation)
        if not isinstance(seen, Tensor) or list(seen.shape[1:]) != due:
            got = list(seen.shape) if isinstance(seen, Tensor) else type(found).__name__
            raise DataError(f"{self.name}: observations are {got}, not [rows, *{due}]")
        seen = seen.detach().to(dtype)
        if rows is not None:
            seen = seen.where(rows.view(-1, *[1] * (seen.dim() - 1)), 0)
        _finite(seen, f"{self.name}, step {time}: an observation")
        return seen


def _columns(action: Tensor, dtype: torch.dtype) -> Tensor:
    return action.to(dtype).reshape(len(action), -1)


def _finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{what} is NaN or infinite")
