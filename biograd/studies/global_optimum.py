"""A study of linear models: how far a rule stays from the global optimum.

Linear and logistic regression, shallow (one layer, a fixed identity between its output and the
loss, so that it is hidden) and deep (hidden linear layers), on points from a normal distribution:
100 in 2 dimensions, 1000 in 100.  Labels are those of a random hyperplane ("linear"), with a tenth
of them swapped ("noisy"), or random.  Full batches, float64, Adam, cosine schedule.

Source: Czarnecki et al. 2017, arXiv 1703.00522, Table 2.
"""

from __future__ import annotations

import dataclasses
import statistics
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.engine import Engine, attach
from biograd.estimators import make
from biograd.progress import Progress
from biograd.randomness import generator
from biograd.recipes import Count, Positive, Table, construct
from biograd.studies import Place, Report

LOSSES = ("squared_error", "cross_entropy")
WIDTH, DEPTH = 16, 10


@dataclasses.dataclass(frozen=True)
class RuleCell:
    """One row: data such as "noisy100", depth "shallow" or "deep", and the published gaps."""

    data: str
    depth: str = "shallow"
    squared_error: float | None = None
    cross_entropy: float | None = None


@dataclasses.dataclass(frozen=True)
class GlobalOptimum:
    """The settings of a study of linear models."""

    cells: Table
    description: str = ""
    estimator: str = "synthetic_gradient"
    settings: Table = dataclasses.field(default_factory=dict)
    """Of the estimator."""
    compare: str = "backprop"
    """The rule beside it."""
    seeds: tuple[int, ...] = (0,)
    steps: Count = 10000
    deep_steps: Count = 3000
    rate: Positive = 3e-3


def run(settings: GlobalOptimum, place: Place, progress: Progress) -> Report:
    """Train every cell with both losses and both rules."""
    rows: list[dict[str, Any]] = []
    for name, table in settings.cells.items():
        cell = construct(RuleCell, table, "study", f"cells.{name}")
        for loss in LOSSES:
            progress.note(f"{name}, {loss}")
            row: dict[str, Any] = {"cell": name, "loss": loss}
            published = getattr(cell, loss)
            if published is not None:
                row["published"] = published
            for key, rule in (("gap", settings.estimator), ("other", settings.compare)):
                own = settings.settings if key == "gap" else {}
                row[key] = statistics.mean(
                    gap(settings, cell, loss, (rule, own), seed) for seed in settings.seeds
                )
            rows.append(row)
    columns = {
        "cell": "",
        "loss": "loss",
        "published": "published gap",
        "gap": settings.estimator,
        "other": settings.compare,
    }
    return Report(columns, rows, ["mean loss above the global optimum after training"])


def gap(
    settings: GlobalOptimum, cell: RuleCell, loss: str, rule: tuple[str, Table], seed: int
) -> float:
    """Return the loss above the global optimum."""
    inputs, targets = points(cell.data, seed)
    made = network(cell.depth, inputs.shape[1], seed)
    engine = attach(made, make(*rule), loss=loss, seed=seed)
    steps = settings.steps if cell.depth == "shallow" else settings.deep_steps
    found = final_loss(engine, inputs, targets, steps, settings.rate)
    return found - optimum(cell.data, loss, inputs, targets)


def points(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs ``[n, d]`` and labels ``[n]``."""
    kind, dimensions = name.rstrip("0123456789"), 100 if name.endswith("100") else 2
    stream = generator(seed, "points", name)
    count = 1000 if dimensions == 100 else 100
    inputs = torch.randn(count, dimensions, generator=stream, dtype=torch.float64)
    normal = torch.randn(dimensions, generator=stream, dtype=torch.float64)
    targets = (inputs @ normal > 0).long()
    if kind == "noisy":
        swapped = torch.randperm(count, generator=stream)[: count // 10]
        targets[swapped] = 1 - targets[swapped]
    if kind == "random":
        targets = torch.randint(2, (count,), generator=stream)
    return inputs, targets


def optimum(name: str, loss: str, inputs: Tensor, targets: Tensor) -> float:
    """Return the least loss of a linear model; the infimum 0 for separable classes."""
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    if loss == "squared_error":
        one_hot = functional.one_hot(targets, 2).double()
        residual = design @ torch.linalg.lstsq(design, one_hot).solution - one_hot
        return 0.5 * residual.square().sum(1).mean().item()
    return 0.0 if name.startswith("linear") else logistic_optimum(design, targets.double())


def logistic_optimum(design: Tensor, targets: Tensor) -> float:
    """Return the least mean log loss, by Newton's method with halved steps."""

    def value(weights: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(design @ weights, targets)

    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(100):
        share = torch.sigmoid(design @ weights)
        gradient = design.T @ (share - targets)
        curvature = (design.T * (share * (1 - share))) @ design
        step, size = torch.linalg.solve(curvature, gradient), 1.0
        while value(weights - size * step) > value(weights) and size > 1e-9:
            size /= 2
        weights = weights - size * step
        if gradient.abs().max() < 1e-10:
            return value(weights).item()
    raise RuntimeError("the classes are separable after all: choose another seed")


def network(depth: str, dimensions: int, seed: int) -> nn.Module:
    """Return linear layers; behind the shallow one an identity, so that its output is hidden."""
    if depth == "shallow":
        identity = nn.Linear(2, 2, bias=False).requires_grad_(False)
        identity.weight.copy_(torch.eye(2))
        layers = [nn.Linear(dimensions, 2), identity]
    else:
        widths = [dimensions, *[WIDTH] * DEPTH]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        layers.append(nn.Linear(WIDTH, 2))
    stream = generator(seed, "weights")
    with torch.no_grad():
        for layer in layers[: 1 if depth == "shallow" else None]:
            layer.bias.zero_()
            layer.weight.normal_(generator=stream).div_(layer.weight.shape[1] ** 0.5)
    return nn.Sequential(*layers).double()


def final_loss(engine: Engine, inputs: Tensor, targets: Tensor, steps: int, rate: float) -> float:
    """Train on the whole batch and return the loss at the end."""
    engine.prepare(inputs, targets)
    trained = [parameter for parameter in engine.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        engine(inputs, targets).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        engine.update()
    return engine(inputs, targets).loss.item()
