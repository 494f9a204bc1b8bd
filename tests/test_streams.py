"""Streams: stopped in the middle and resumed they go on bit for bit, or are refused beforehand."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import message
from torch.utils.data import DataLoader, IterableDataset

import biograd
from biograd import experiment
from biograd.errors import DataError
from biograd.runs import open_run

EPOCHS, ROWS = 3, 64
SETTINGS = [
    f"dataset.epoch_rows={ROWS}",
    "network.hidden=[6]",
    "training.batch_size=8",
    f"training.epochs={EPOCHS}",
]


class Drawn(IterableDataset[Any]):
    """Examples drawn from the global generators; it may send a signal at one of them."""

    def __init__(self, stop: int = 0, length: int = 300) -> None:
        self.stop, self.length = stop, length

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.length)  # of the pass, drawn when it begins
        for number in order.tolist():
            self.stop -= 1
            if self.stop == 0:
                os.kill(os.getpid(), signal.SIGINT)
            noise = torch.rand(4) + torch.from_numpy(np.random.rand(4)).float() + random.random()
            yield noise + number % 3, number % 3


class Sharded(IterableDataset[Any]):
    """Each worker reads a part of it."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, 600, step):
            yield torch.full((4,), number / 600), number % 3


def contents(path: Path) -> dict[str, np.ndarray]:
    with open_run(path) as run:
        found = {f"tensor.{k}": v.numpy() for k, v in run.checkpoint()[0].items()}
        for stream in set(run.streams) - {"final"}:
            table = run.scalars(stream).items()
            found |= {f"{stream}.{k}": v for k, v in table if k != "wall_time"}
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], int]:
    """Return what a run holds that nobody stopped, and the examples read before its first step."""
    path, read = tmp_path_factory.mktemp("whole") / "a.h5", [0]
    original = Drawn.__iter__

    def counted(self: Drawn) -> Iterator[Any]:
        for example in original(self):
            read[0] += 1
            yield example

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawn, "__iter__", counted)
        torch.manual_seed(1)
        biograd.train("ann", Drawn(), path=path, settings=SETTINGS)
    return contents(path), read[0] - EPOCHS * ROWS


@pytest.mark.parametrize("step", [3, 13])
def test_a_stream_that_is_stopped_goes_on_bit_for_bit(
    tmp_path: Path, whole: tuple[dict[str, np.ndarray], int], step: int
) -> None:
    path, (due, before) = tmp_path / "a.h5", whole
    torch.manual_seed(2)
    with pytest.raises(experiment.Interrupted):
        biograd.train("ann", Drawn(before + step * 8 + 3), path=path, settings=SETTINGS)
    assert not path.exists()
    torch.manual_seed(3)
    biograd.resume(path, data=Drawn())
    assert same(contents(path), due)


def test_another_seed_is_another_run(
    tmp_path: Path, whole: tuple[dict[str, np.ndarray], int]
) -> None:
    biograd.train("ann", Drawn(), seed=1, path=tmp_path / "a.h5", settings=SETTINGS)
    assert not same(contents(tmp_path / "a.h5"), whole[0])


@pytest.mark.parametrize("given", [Drawn(), Sharded()], ids=["whole", "sharded"])
@pytest.mark.parametrize("how", ["loader", "recipe"])
def test_workers_on_a_stream_are_refused_before_anything_starts(
    tmp_path: Path, given: Any, how: str
) -> None:
    data = DataLoader(given, num_workers=2, batch_size=4) if how == "loader" else given
    settings = [*SETTINGS, *(["dataset.workers=2"] if how == "recipe" else [])]
    said = message(
        DataError, lambda: biograd.train("ann", data, path=tmp_path / "a.h5", settings=settings)
    )
    assert "workers = 2 on a stream: each would read all of it" in said
    assert not list(tmp_path.iterdir())


def test_a_loader_without_workers_is_a_stream(tmp_path: Path) -> None:
    loader = DataLoader(Sharded(), batch_size=4)
    run = biograd.train("ann", loader, path=tmp_path / "a.h5", settings=SETTINGS)
    assert run.summary["epochs"] == 3
