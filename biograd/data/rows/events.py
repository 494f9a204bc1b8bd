"""Events: of every trial the times of spikes and the units that fired, each row as long as it is.

They are binned when a batch is taken, so that they never are dense as a whole.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from biograd.checking import Count, Positive, Range, validate
from biograd.data.digests import sha256_of
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError


@dataclasses.dataclass(frozen=True)
class Flat:
    """Rows of different lengths: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: Any
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self.values[self.offsets[row] : self.offsets[row + 1]])


class Events:
    """Spikes of ``units`` channels as counts in steps, ``[B, T, units]``.

    ``T`` is that of the longest trial of the batch; ``lengths`` are 1 + the step of the last spike.

    Args:
        times: of each trial, anything that gives a row when indexed by its number.
        channels: the units that fired, likewise.
        targets: ``[N, ...]``.
        units: number of channels.
        dt_ms: length of a step.
        to_ms: what a time of 1 is in milliseconds, 1000 for seconds.
        steps: most steps of a trial; 0: those of the longest.
        digest: of the files; "": computed from the events.
        where: opens every message.

    The order of the events does not matter; several of a unit in one step are counted.

    Raises:
        DataError: a negative time, a unit out of range, or a spike behind ``steps``.
    """

    timed = True

    def __init__(
        self,
        times: Any,
        channels: Any,
        targets: Tensor,
        units: Count,
        dt_ms: Positive = 1.0,
        *,
        to_ms: Positive = 1.0,
        steps: Annotated[int, Range(0)] = 0,
        digest: str = "",
        weight: Tensor | None = None,
        where: str = "events",
    ) -> None:
        validate(Events, locals())
        if not len(times) == len(channels) == len(targets):
            counts = f"{len(times)} rows of times, {len(channels)} of units, {len(targets)} targets"
            raise DataError(f"{where}: {counts}")
        self.times, self.channels, self.targets = times, channels, targets
        self.units, self.dt_ms, self.to_ms, self.most = units, dt_ms, to_ms, steps
        self.known, self.weight, self.where = digest, weight, where

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one step."""
        return (self.units,)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def steps(self) -> int:
        """Steps of the longest trial, or as many as were asked for."""
        return self.most or max(self._length(self._bins(row)) for row in range(len(self)))

    @cached_property
    def digest(self) -> str:
        """Of the files, or of all events."""
        if self.known:
            return self.known
        rows = [np.asarray(e[i]) for i in range(len(self)) for e in (self.times, self.channels)]
        return sha256_of(*rows, self.targets)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the trials ``index``, binned."""
        bins = [self._bins(row) for row in index.tolist()]
        lengths = torch.tensor([self._length(each) for each in bins])
        dense = torch.zeros(len(bins), int(lengths.max()), self.units)
        for place, (row, steps) in enumerate(zip(index.tolist(), bins, strict=True)):
            at = (torch.from_numpy(steps), torch.from_numpy(self._fired(row, len(steps))))
            dense[place].index_put_(at, torch.ones(len(steps)), accumulate=True)
        weight = None if self.weight is None else self.weight[index]
        return Batch(dense, self.targets[index], index, lengths, weight)

    def check(self) -> None:
        """Refuse events that cannot be binned, all rows at once.

        Raises:
            DataError: see the class.
        """
        for row in range(len(self)):
            self._fired(row, len(self._bins(row)))

    def _fired(self, row: int, count: int) -> np.ndarray:
        """Return the unit of every spike of a trial."""
        given = np.asarray(self.channels[row])
        if len(given) != count:
            raise DataError(f"{self.where}, row {row}: {count} times, {len(given)} units")
        wrong = given[~((given >= 0) & (given < self.units) & (given % 1 == 0))]
        if len(wrong):
            raise DataError(
                f"{self.where}, row {row}: unit {wrong[0]} is outside 0..{self.units - 1}"
            )
        return given.astype(np.int64)

    def _bins(self, row: int) -> np.ndarray:
        """Return the step of every spike of a trial."""
        times = np.asarray(self.times[row]).astype(np.float64) * self.to_ms
        if len(times) and not (np.isfinite(times).all() and times.min() >= 0):
            raise DataError(f"{self.where}, row {row}: a time is negative or not finite")
        # a time on the edge of a step, but for rounding, belongs behind it
        found = np.floor(times / self.dt_ms + 1e-6).astype(np.int64)
        if self.most and len(found) and found.max() >= self.most:
            raise DataError(
                f"{self.where}, row {row}: a spike at {times.max():g} ms is behind steps = "
                f"{self.most} of {self.dt_ms:g} ms"
            )
        return found

    @staticmethod
    def _length(bins: np.ndarray) -> int:
        return int(bins.max()) + 1 if len(bins) else 1
