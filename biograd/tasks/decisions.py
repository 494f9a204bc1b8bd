"""Decisions in an environment: what an action is, what a return is worth, what it teaches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from biograd.checking import Positive, Range
from biograd.errors import CapabilityError, DataError
from biograd.ranks import parallel
from biograd.tasks.task import Metrics, Task, refuse

NOTES = 5
"""What an episode notes of a step beside outputs and action: reward, whether it went on, whether
the environment says what actions are worth, the regret, and what the policy could expect."""
SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True)
class Decisions(Task):
    """Actions that earn rewards: the loss of an episode is its discounted return, negative.

    ``L_b = -sum_t g^t R_t``; noise in step ``t`` is credited with
    ``G_t = sum_k g^k R_(t+k)`` alone.  The environment has no derivative.  Under ``score`` the loss
    has the gradient of the score function, ``-sum_t (G_t - b_t) d log p(a_t)``, so that rules which
    need a graph learn, too; rules of noise learn from the return itself in any case.

    The outputs of a step are the actions' log-probabilities but for a constant, or, if actions are
    numbers, their values.  An episode returns ``[B, T, K + actions + 5]``: beside the outputs the
    action, the reward, and what else is noted (``environments.Episodes``).

    Args:
        continuous: whether actions are ``K`` numbers, not one of ``K`` choices.
        choice: "sampled" (by the softmax of the outputs, or normal around them) or "greedy" (the
            largest; the numbers themselves); None: sampled under ``score``, else greedy, so that
            noise in the network is what explores.
        deviation: standard deviation of sampled numbers.
        discount: ``g``.
        score: differentiate the log-probability of the sampled actions.
        baseline: ``b_t`` under ``score``: "none", "leave_one_out" (mean of ``G_t`` of the other
            episodes of the batch) or "expected" (what the policy could expect of the step, where
            the environment knows what actions are worth; for one right action its probability).
        solved: return from which an episode is a success; None: nobody says.
    """

    timed: bool = True
    continuous: bool = False
    choice: Literal["sampled", "greedy"] | None = None
    deviation: Positive = 0.5
    discount: Annotated[float, Range(0.0, 1.0)] = 1.0  # type: ignore[misc]
    score: bool = False
    baseline: Literal["none", "leave_one_out", "expected"] = "leave_one_out"
    solved: float | None = None

    headline: ClassVar[str] = "return"
    better: ClassVar[str] = "higher"
    whole: ClassVar[bool] = True
    closed_loop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choice is None:
            object.__setattr__(self, "choice", "sampled" if self.score else "greedy")
        if self.score and self.choice == "greedy":
            raise ValueError("score = true: only sampled actions have a probability: choice")
        if not self.score and self.baseline != "leave_one_out":
            raise ValueError(
                f"baseline = {self.baseline!r}: has no effect without score = true: rules of noise "
                "have baselines of their own"
            )

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the loss has the gradient of the score function."""
        return self.score

    @property
    def numbers(self) -> int:
        """The number of numbers that an action is."""
        return self.outputs if self.continuous else 1

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is no condition of an episode, int64 ``[N, 1]``."""
        if targets.is_floating_point() or targets.dim() != 2:
            raise DataError(f"{where}: targets are {list(targets.shape)}: episodes have none")
        refuse(targets < 0, where, "a condition is below 0")

    def check_outputs(self, outputs: Tensor) -> None:
        """Refuse outputs that are none of an episode.

        Raises:
            CapabilityError: the network is not in an environment.
        """
        due = self.outputs + self.numbers + NOTES
        if outputs.dim() != 3 or outputs.shape[2] != due:
            raise CapabilityError(
                f"outputs {list(outputs.shape)} are no episodes, [rows, steps, {due}]: put the "
                "network into its environment, biograd.Episodes(network, environment, task)"
            )

    def act(self, outputs: Tensor, draws: Tensor) -> Tensor:
        """Return actions ``[B]``, int64, or numbers ``[B, K]``, of outputs ``[B, K]``.

        Args:
            draws: from 0 to 1, ``[B, K]``: equal draws and outputs give equal actions.
        """
        if self.continuous:
            if self.choice == "greedy":
                return outputs
            return outputs + self.deviation * torch.special.ndtri(draws).to(outputs.dtype)
        if self.choice == "greedy":
            return outputs.argmax(1)
        return (outputs.double() - (-draws.clamp_min(SMALLEST).log()).log()).argmax(1)

    def log_probability(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Return ``log p(a)`` but for a constant, ``[B, T]``, of values ``[B, T, _]``."""
        if self.continuous:
            return -((action - outputs) / self.deviation).square().sum(2) / 2
        return outputs.log_softmax(2).gather(2, action.long()).squeeze(2)

    def noted(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return what episodes noted, each ``[B, T]``: see ``NOTES``."""
        names = ("reward", "alive", "known", "regret", "expected")
        notes = outputs.detach()[..., -NOTES:].unbind(2)
        return dict(zip(names, notes, strict=True))

    def alive(self, outputs: Tensor) -> Tensor:
        """Return whether each episode still went on in each step, ``[B, T]``."""
        return self.noted(outputs)["alive"] > 0

    def by_step(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-R_t``, ``[B, T]``; under ``score`` with its gradient, which adds nothing."""
        self.check_outputs(outputs)
        noted = self.noted(outputs)
        losses = -noted["reward"]
        if not self.score:
            return losses
        action = outputs.detach()[..., self.outputs : -NOTES]
        score = self.log_probability(outputs[..., : self.outputs], action) * noted["alive"]
        teaching = (self.advantages(noted) * score).sum(1, keepdim=True)
        # in the first step, where no discount meets it
        return losses - torch.nn.functional.pad(
            teaching - teaching.detach(), (0, losses.shape[1] - 1)
        )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the discounted return of each episode, negative, ``[B]``."""
        steps = self.by_step(outputs, targets)
        places = torch.arange(steps.shape[1], device=steps.device)
        return steps @ (self.discount**places).to(steps.dtype)

    def stepwise(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-R_t``, ``[B, T]``."""
        return self.by_step(outputs, targets)

    def advantages(self, noted: dict[str, Tensor]) -> Tensor:
        """Return ``G_t - b_t``, ``[B, T]``.

        Raises:
            CapabilityError: no other episode in the batch, or the environment does not know what
                actions are worth.
        """
        returns = self.returns(noted["reward"])
        if self.baseline == "none":
            return returns
        if self.baseline == "expected":
            if not bool(noted["known"].all()):
                raise CapabilityError(
                    "task.baseline = 'expected': the environment does not know what actions are "
                    "worth: take 'leave_one_out'"
                )
            return returns - self.returns(noted["expected"])
        count = parallel.total(torch.tensor(float(len(returns)), device=returns.device))
        if count < 2:
            raise CapabilityError(
                "task.baseline = 'leave_one_out': needs other episodes: training.batch_size >= 2"
            )
        others = parallel.total(returns.sum(0)) - returns
        return returns - others / (count - 1)

    def returns(self, rewards: Tensor) -> Tensor:
        """Return ``G_t = R_t + g G_(t+1)``, ``[B, T]``."""
        total, found = torch.zeros_like(rewards[:, 0]), []
        for reward in rewards.flip(1).unbind(1):
            total = reward + self.discount * total
            found.append(total)
        return torch.stack(found[::-1], 1)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Refuse: nobody knows what the outputs should have been.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(
            "an environment says how good an action was, not what it should have been: the rule "
            "needs targets: take NodePerturbation, WeakGradient or WeightPerturbation"
        )

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the return (without discount), success, length, regret and best actions."""
        noted = self.noted(outputs)
        ones = torch.ones_like(noted["reward"][:, 0])
        alive, known = noted["alive"], noted["alive"] * noted["known"]
        total = noted["reward"].double().sum(1)
        limit = math.inf if self.solved is None else self.solved - 1e-6
        return {
            "return": (total, ones),
            "success": ((total >= limit).double(), ones * (self.solved is not None)),
            "length": (alive.sum(1), ones),
            "regret": ((noted["regret"] * known).sum(1), known.amax(1)),
            "optimal": (((noted["regret"] <= 0) * known).sum(1), known.sum(1)),
        }

    def each(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the metrics of every episode, and its condition."""
        found = self.metrics(outputs, targets)
        means = {name: top / low for name, (top, low) in found.items() if bool(low.any())}
        return means | {"condition": targets[:, 0]}

    def figures(self, totals: Any) -> dict[str, float]:
        """Return the means over episodes, of what is known: success, regret, best actions."""
        return {name: v for name, v in super().figures(totals).items() if not math.isnan(v)}

    def strata(self, targets: Tensor) -> Tensor | None:
        """Return the condition of each episode."""
        return targets[:, 0]
