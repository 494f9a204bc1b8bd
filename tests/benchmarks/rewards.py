"""What is learned from rewards alone: the table of docs/results.md.

    python tests/benchmarks/rewards.py [TASK ...]

One line for each task and rule: the figure of 100 test episodes after the last batch, mean and
range of three seeds, and, where it is asked for, after how many batches it was good enough.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from biograd.engine import attach
from biograd.environments import ENVIRONMENTS, TESTED, CartPole, DelayedReward, Episodes
from biograd.estimators import make
from biograd.tasks import Decisions

SEEDS, TESTS, LOOKS = 3, 100, 4


@dataclasses.dataclass(frozen=True)
class Trial:
    """A task: its environment, a network's width, and how it is trained by Adam."""

    world: Callable[[], Any]
    figure: str
    trivial: float
    width: int
    batch: int
    batches: int
    rate: float
    enough: float = float("inf")


TRIALS = {
    "bandit": Trial(lambda: ENVIRONMENTS["bandit"](), "optimal", 0.1, 16, 16, 100, 0.02),
    "delayed_reward": Trial(lambda: DelayedReward(signs=4), "return", 0.25, 16, 32, 120, 0.02),
    "cart_pole": Trial(lambda: CartPole(), "return", 22, 16, 16, 24, 0.02, 195),
    "digits_bandit": Trial(
        lambda: ENVIRONMENTS["digits_bandit"](), "return", 0.1, 30, 32, 800, 0.005
    ),
}  # fmt: skip
RULES: Mapping[str, tuple[str, dict[str, Any], bool]] = {
    "backprop of the score": ("backprop", {}, True),
    "direct_feedback of the score": ("direct_feedback", {}, True),
    "node_perturbation": ("node_perturbation", {"copies": 9, "sigma": 0.5}, False),
    "three_factor, one copy": ("three_factor", {"copies": 2, "sigma": 0.5}, False),
    "likelihood_ratio": ("likelihood_ratio", {"copies": 9, "sigma": 0.5}, False),
    "weight_perturbation": ("weight_perturbation", {"copies": 9, "sigma": 0.2}, False),
    "frozen_hidden of the score": ("frozen_hidden", {}, True),
}


def learned(trial: Trial, name: str, seed: int) -> tuple[float, int | None]:
    """Return the figure of the test in the end, and the batches after which it was enough."""
    rule, settings, score = RULES[name]
    world = trial.world()
    torch.manual_seed(seed)
    inputs = world.observation[0]
    module = nn.Sequential(
        nn.Linear(inputs, trial.width), nn.Tanh(), nn.Linear(trial.width, world.actions)
    )
    task = Decisions(world.actions, score=score)
    episodes = Episodes(module, world, task)
    engine = attach(episodes, make(rule, settings), task=task, seed=seed)
    kinds = torch.zeros(trial.batch, 1).long()
    first, value = None, 0.0
    engine.prepare(torch.arange(trial.batch)[:, None].float(), kinds)
    optimiser = torch.optim.Adam(engine.parameters(), trial.rate)
    for batch in range(trial.batches):
        start = (seed * trial.batches + batch) * trial.batch
        engine(torch.arange(start, start + trial.batch)[:, None].float(), kinds).backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
        last = batch + 1 == trial.batches
        if last or (trial.enough < float("inf") and (batch + 1) % LOOKS == 0):
            value = tested(episodes, trial.figure)
            first = batch + 1 if first is None and value >= trial.enough else first
    engine.detach()
    return value, first


@torch.no_grad()
def tested(episodes: Episodes, figure: str) -> float:
    """Return a metric of test episodes."""
    episodes.eval()
    outputs = episodes(torch.arange(TESTED, TESTED + TESTS)[:, None].float())
    episodes.train()
    top, low = episodes.task.metrics(outputs, torch.zeros(TESTS, 1).long())[figure]
    return float(top.sum() / low.sum())


def main(names: list[str]) -> None:
    """Print the table."""
    print("| task | figure | trivial | rule | mean (range) | batches until enough |")
    print("|---|---|---|---|---|---|")
    for name in names or TRIALS:
        trial = TRIALS[name]
        for rule in RULES:
            found = [learned(trial, rule, seed) for seed in range(SEEDS)]
            values = [value for value, _ in found]
            mean = sum(values) / len(values)
            until = ", ".join("-" if one is None else str(one) for _, one in found)
            until = until if trial.enough < float("inf") else ""
            print(
                f"| {name} | {trial.figure} | {trial.trivial:g} | {rule} | {mean:.3g} "
                f"({min(values):.3g} to {max(values):.3g}) | {until} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
