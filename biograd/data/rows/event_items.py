"""Map-style Datasets whose inputs are events, arrays of records, as those of tonic are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from biograd.data.digests import combined, sha256_of
from biograd.data.formats.event_arrays import of_records
from biograd.data.request import Request
from biograd.data.rows.arrays import as_targets
from biograd.data.rows.events import Events, of_request
from biograd.data.rows.items import named
from biograd.data.source import FIXED
from biograd.errors import DataError
from biograd.randomness import seeded_globals


class RecordItems:
    """Examples of a Dataset as times in microseconds and channels, read when they are asked for.

    Args:
        dataset: an example is ``(records, target)``, or a mapping of such names.
        shape: of the sensor.
    """

    def __init__(self, dataset: Any, shape: tuple[int, ...], where: str) -> None:
        self.dataset, self.shape, self.where = dataset, shape, where
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return times and channels of a row.

        Raises:
            DataError: fields that are no events, or one outside of the sensor.
        """
        if self._last is None or self._last[0] != row:
            with seeded_globals(0, "examples", *FIXED, row):
                table = named(self.dataset[row], self.where)["x"]
            events = of_records(np.asarray(table), f"{self.where}, row {row}")
            numbers = events.numbers(self.shape, f"{self.where}, row {row}")
            self._last = row, events.times, numbers
        return self._last[1:]


class RecordColumn:
    """Times or channels of such examples, by row."""

    def __init__(self, items: RecordItems, place: int) -> None:
        self.items, self.place = items, place

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items.at(row)[self.place]


def are_records(example: Any) -> bool:
    """Return whether the inputs of an example are an array of records."""
    values = list(example.values()) if isinstance(example, dict) else [example]
    first = values[0][0] if isinstance(values[0], tuple | list) and values[0] else values[0]
    return isinstance(first, np.ndarray) and first.dtype.names is not None


def event_items(dataset: Any, request: Request, where: str) -> Events:
    """Return the events of a Dataset; every example is read once to see its target and its end.

    The sensor has the recipe's ``shape``, or the Dataset's own ``sensor_size``, which counts
    columns, rows, polarities.

    Raises:
        DataError: no shape, fields that are no events, or examples that are another when they are
            read again.
    """
    shape = _shape(dataset, request, where)
    items = RecordItems(dataset, shape, where)
    _check_fixed(dataset, where)
    targets, latest, digests = list[Tensor](), list[int](), list[str]()
    for row in range(len(dataset)):
        with seeded_globals(0, "examples", *FIXED, row):
            target = named(dataset[row], where)["y"]
        times, numbers = items.at(row)
        if len(times) and times.min() < 0:
            raise DataError(f"{where}, row {row}: a time is negative")
        targets.append(as_targets(target, f"{where}: targets"))
        latest.append(int(times.max(initial=0)))
        digests.append(sha256_of(times, numbers))
    y = torch.stack(targets)
    return of_request(
        request, RecordColumn(items, 0), RecordColumn(items, 1), y, int(np.prod(shape)), "us",
        sensor=shape, latest=np.array(latest), digest=combined(*digests, sha256_of(y)), where=where,
    )  # fmt: skip


def _shape(dataset: Any, request: Request, where: str) -> tuple[int, ...]:
    """Return the shape of the sensor: polarity, rows, columns, or channels."""
    if request.recipe.shape:
        return request.recipe.shape
    size = getattr(dataset, "sensor_size", None)
    if size is None:
        raise DataError(f"{where}: inputs are records of events: set dataset.shape of the sensor")
    width, height, polarities = (int(each) for each in size)
    fields = named(dataset[0], where)["x"].dtype.names
    return (polarities, height, width) if "y" in fields else (width,)


def _check_fixed(dataset: Any, where: str) -> None:
    """Refuse a transform that draws at random: of events it would be drawn once and for all."""
    found = []
    for epoch in (0, 1):
        with seeded_globals(0, "examples", 0, epoch, 0):
            found.append(np.asarray(named(dataset[0], where)["x"]))
    if found[0].shape != found[1].shape or found[0].tobytes() != found[1].tobytes():
        raise DataError(
            f"{where}: its transform draws at random: take it out and say it in the recipe, "
            "dataset.augmentation, which is drawn anew in each epoch"
        )
