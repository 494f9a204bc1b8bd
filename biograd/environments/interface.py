"""What an environment is: rows of episodes that are reset by seeds and stepped by actions."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

HELD_OUT, TESTED, SEEDS = 2**23, 2**23 + 2**22, 2**24
"""Seeds of episodes to learn from are below the first, those to choose by below the second, those
of tests below the third: an environment that keeps conditions for them tells by that.  As inputs of
a network in single precision they are exact."""
RANGES = {"train": (0, HELD_OUT), "validation": (HELD_OUT, TESTED), "test": (TESTED, SEEDS)}
Step = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]
"""Observations ``[B, *shape]``, rewards, terminated and truncated ``[B]``, and what else."""


@runtime_checkable
class Environment(Protocol):
    """Rows of episodes, none of which acts on another; the state is nobody's to differentiate.

    What is random follows from the seed (``environments.chance``): equal seeds and actions give
    equal rewards, whatever the other rows.  It may have, beside these:

    ``values() -> [B, actions]``, what each action is worth in the step that comes (regret);
    ``condition(seed) -> [B]``, whole numbers from 0 on, the kind of each episode;
    ``solved``, the return from which an episode is a success.

    Attributes:
        observation: shape of one observation.
        actions: number of choices; or of the numbers that an action is, if ``continuous``.
        continuous: whether an action is numbers.
        horizon: ``T``, most steps of an episode.
    """

    observation: tuple[int, ...]
    actions: int
    continuous: bool
    horizon: int

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Begin an episode in each row and return its first observations ``[B, *shape]``.

        Args:
            seed: int64 ``[B]``.
        """
        ...

    def step(self, action: Tensor) -> Step:
        """Take an action in each row: int64 ``[B]``, or numbers ``[B, actions]``.

        Rows whose episode has ended are stepped, too; what they return is not looked at.
        """
        ...
