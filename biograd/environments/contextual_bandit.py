"""A bandit that shows something first: which action is right follows from what is seen."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from biograd.checking import Fraction, Range, validate
from biograd.environments.chance import uniform, whole
from biograd.environments.interface import HELD_OUT, TESTED, Step
from biograd.errors import DataError
from biograd.randomness import generator


class ContextualBandit:
    """One decision a trial: an example is seen, its class is the right action and earns 1, else 0.

    ``P(R = 1) = 1 - slips`` for the right action, ``slips`` for the others.  Episodes to learn
    from, to choose by and of tests see different examples.

    Args:
        inputs: ``[N, *shape]``.
        classes: ``[N]``, whole numbers from 0 on.
        held_out: share of the examples that tests see, and as many those that are chosen by.
        slips: probability that a reward is turned.

    Raises:
        DataError: not one class for each input.
    """

    continuous, horizon, solved = False, 1, 1.0

    def __init__(
        self,
        inputs: Any,
        classes: Any,
        held_out: Annotated[float, Range(0.01, 0.45)] = 0.2,
        slips: Fraction = 0.0,
    ) -> None:
        validate(ContextualBandit, {"held_out": held_out, "slips": slips})
        x, y = torch.as_tensor(np.asarray(inputs)), torch.as_tensor(np.asarray(classes)).long()
        if y.dim() != 1 or len(x) != len(y) or len(x) < 3 or int(y.min()) < 0:
            raise DataError(
                f"ContextualBandit: inputs {list(x.shape)}, classes {list(y.shape)}: give one "
                "class from 0 on for each of at least three inputs"
            )
        self.observation, self.actions = tuple(x.shape[1:]), int(y.max()) + 1
        self.slips = slips
        order = torch.randperm(len(x), generator=generator(0, "contextual bandit"))
        count = min(max(round(len(x) * held_out), 1), (len(x) - 1) // 2)
        parts = (order[2 * count :], order[count : 2 * count], order[:count])
        self.examples = tuple((x[rows], y[rows]) for rows in parts)

    def _shown(self, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the example of each row, and its class."""
        kinds = (seed >= HELD_OUT).long() + (seed >= TESTED).long()
        shown = torch.empty(len(seed), *self.observation, dtype=torch.float64, device=seed.device)
        right = torch.empty_like(seed)
        for kind, (inputs, classes) in enumerate(self.examples):
            rows = kinds == kind
            place = whole(seed[rows], "example", 0, len(inputs)).to(inputs.device)
            shown[rows] = inputs[place].to(shown)
            right[rows] = classes[place].to(right)
        return shown, right

    def condition(self, seed: Tensor) -> Tensor:
        """Return the class of each episode's example."""
        return self._shown(seed)[1]

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Show an example in each row."""
        self.seed = seed
        inputs, self.classes = self._shown(seed)
        self.seen = inputs
        return inputs, {}

    def values(self) -> Tensor:
        """Return the probability of a reward by action."""
        right = torch.nn.functional.one_hot(self.classes, self.actions).double()
        return self.slips + (1 - 2 * self.slips) * right

    def step(self, action: Tensor) -> Step:
        """Answer in each row."""
        turned = uniform(self.seed, "slip", 0, 1)[:, 0] < self.slips
        reward = ((action == self.classes) ^ turned).double()
        over = torch.ones_like(turned)
        return self.seen, reward, over, over & False, {}
