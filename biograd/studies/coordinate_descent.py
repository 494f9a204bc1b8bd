"""A study of block coordinate descent: networks solved layer by layer, beside gradient descent.

Both minimise the squared error on the same rows from the same weights; a deep network whose weights
start small is where gradient descent stands still and block coordinate descent does not.

Source: Zeng, Lau, Lin & Yao 2019, arXiv 1803.00225.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import nn

from biograd import data, recipes
from biograd.data import Arrays, Batch, Dataset
from biograd.local.block_coordinate import BlockCoordinate, Penalties
from biograd.networks import build
from biograd.progress import Progress
from biograd.randomness import generator
from biograd.recipes import Count, Positive, Table, construct
from biograd.studies import Place, Report
from biograd.tasks.classes import squared_error

BATCH = 128


@dataclasses.dataclass(frozen=True)
class NetworkCell:
    """One network."""

    hidden: tuple[Count, ...]
    rows: Count = 10000
    """Examples of the training split, balanced over the classes."""
    sweeps: Count = 30
    """Sweeps of block coordinate descent, and epochs of gradient descent."""
    published: float | None = None
    """Accuracy of block coordinate descent in the literature, in per cent."""


@dataclasses.dataclass(frozen=True)
class BlockCoordinateDescent:
    """The settings of a study of block coordinate descent."""

    cells: Table
    description: str = ""
    dataset: str = "mnist"
    inertia: Positive = 0.1
    initial: Positive = 0.01
    """Standard deviation of the initial weights; biases start at 0.1."""
    rate: Positive = 1e-3
    """Learning rate of gradient descent."""
    seed: int = 0


def run(settings: BlockCoordinateDescent, place: Place, progress: Progress) -> Report:
    """Train every network in both ways."""
    recipe = recipes.load_dataset(settings.dataset)
    dataset = data.load(
        recipe,
        name=settings.dataset,
        data_dir=place.data_dir,
        offline=place.offline,
        seed=settings.seed,
    )
    found: list[dict[str, Any]] = []
    for name, table in settings.cells.items():
        cell = construct(NetworkCell, table, "study", f"cells.{name}")
        rows = dataset.shown(dataset.train, cell.rows, settings.seed)
        test = dataset.evaluated.take(torch.arange(len(dataset.evaluated)))
        for rule in ("block coordinate descent", "gradient descent"):
            progress.note(f"{name}, {rule}")
            network, begin = _network(settings, cell, dataset), time.process_time()
            if rule.startswith("block"):
                _solve(settings, cell, network, rows)
            else:
                _descend(settings, cell, network, rows)
            row: dict[str, Any] = {"cell": name, "rule": rule}
            row["test"], row["train"] = _accuracy(network, test), _accuracy(network, rows)
            if rule.startswith("block") and cell.published is not None:
                row["published"] = cell.published
            found.append(row | {"seconds": time.process_time() - begin})
    columns = {
        "cell": "",
        "rule": "rule",
        "test": "test accuracy %",
        "train": "training rows %",
        "published": "published %",
        "seconds": "CPU seconds",
    }
    return Report(columns, found, [f"one seed, {settings.seed}; squared error"])


def _network(settings: BlockCoordinateDescent, cell: NetworkCell, dataset: Dataset) -> nn.Module:
    recipe = recipes.load_model("ann", assignments=[f"network.hidden={list(cell.hidden)}"])
    network = build(recipe, dataset.shape, dataset.task.outputs)
    stream = generator(settings.seed, "weights")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(settings.initial * torch.randn(parameter.shape, generator=stream))
            else:
                parameter.fill_(0.1)
    return network


def _solve(
    settings: BlockCoordinateDescent, cell: NetworkCell, network: nn.Module, rows: Batch
) -> None:
    penalties = Penalties(inertia=settings.inertia)
    descent = BlockCoordinate(network, rows.inputs, rows.targets, penalties)
    for _ in range(cell.sweeps):
        descent.sweep()


def _descend(
    settings: BlockCoordinateDescent, cell: NetworkCell, network: nn.Module, rows: Batch
) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.rate)
    for epoch in range(cell.sweeps):
        for batch in data.batches(
            Arrays(rows.inputs, rows.targets), BATCH, generator(settings.seed, "order", epoch)
        ):
            optimiser.zero_grad()
            squared_error(network(batch.inputs), batch.targets).mean().backward()
            optimiser.step()


@torch.no_grad()
def _accuracy(network: nn.Module, split: Batch) -> float:
    """Return the share of right answers in per cent."""
    return 100 * float((network(split.inputs).argmax(1) == split.targets).float().mean())
