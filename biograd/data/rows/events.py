"""Events: of every trial the times of spikes and the units that fired, each row as long as it is.

They are binned when a batch is taken, so that they never are dense as a whole.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from biograd.checking import Count, Positive, Range, construct, validate
from biograd.data.digests import sha256_of
from biograd.data.files.unpacking import check_memory
from biograd.data.request import Request
from biograd.data.rows.augmentation import Augmentation
from biograd.data.rows.binning import Binning
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError, RecipeError

TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1000.0}
COUNTS, UNCHANGED = Binning(), Augmentation()
LATEST_MS = 1e12
"""A time beyond would be 30 years: its unit is another."""


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
    """Spikes of ``units`` channels as counts in steps, ``[B, T, *shape]``.

    ``T`` is that of the longest trial of the batch; ``lengths`` are 1 + the step of the last spike.
    Where targets have a value for each of ``steps``, all trials are that long.

    Args:
        times: of each trial, anything that gives a row when indexed by its number.
        channels: the units that fired, likewise.
        targets: ``[N, ...]``.
        units: number of channels.
        dt_ms: length of a step.
        to_ms: what a time of 1 is in milliseconds, 1000 for seconds.
        steps: most steps of a trial; 0: those of the longest, or of the window.
        sensor: shape whose channels are ``units``, last axis fastest; (): ``[units]``.
        binning: which events count, and how.
        augmentation: what changes in rows that are learned from, those of a key with an epoch.
        latest: time of the last event of each row, of events that were checked before; None: they
            are read to find it.
        digest: of the files; "": computed from the events.
        where: opens every message.

    The order of the events does not matter; several of a unit in one step are counted.

    Raises:
        RecipeError: binning or augmentation does not fit the sensor.
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
        sensor: tuple[int, ...] = (),
        binning: Binning = COUNTS,
        augmentation: Augmentation = UNCHANGED,
        latest: np.ndarray | None = None,
        digest: str = "",
        weight: Tensor | None = None,
        where: str = "events",
    ) -> None:
        validate(Events, locals())
        if not len(times) == len(channels) == len(targets):
            counts = f"{len(times)} rows of times, {len(channels)} of units, {len(targets)} targets"
            raise DataError(f"{where}: {counts}")
        self.times, self.channels, self.targets = times, channels, targets
        self.units, self.dt_ms, self.to_ms = units, dt_ms, to_ms
        self.sensor = sensor or (units,)
        self.binning, self.augmentation, self.latest = binning, augmentation, latest
        if math.prod(self.sensor) != units:
            raise RecipeError(f"{where}: shape = {list(sensor)}: the events have {units} channels")
        self.shape = binning.pooled(self.sensor, where)
        augmentation.check(self.sensor, where)
        self.most = steps or binning.steps(dt_ms, where)
        if steps and binning.steps(dt_ms, where) not in (0, steps):
            raise RecipeError(f"{where}: steps = {steps}: is not the window of binning")
        self.known, self.weight, self.where = digest, weight, where

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def steps(self) -> int:
        """Steps of the longest trial, or as many as were asked for."""
        if self.most:
            return self.most
        if self.latest is not None:
            last = np.asarray(self.latest).astype(np.float64).max(initial=0) * self.to_ms
            return int(self._binned(np.array([max(last - self.binning.start_ms, 0)])).max()) + 1
        return max(self._length(self._read(row)[0]) for row in range(len(self)))

    @cached_property
    def digest(self) -> str:
        """Of the files, or of all events."""
        if self.known:
            return self.known
        rows = [np.asarray(e[i]) for i in range(len(self)) for e in (self.times, self.channels)]
        return sha256_of(*rows, self.targets)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the trials ``index``, binned."""
        rows = [self._drawn(row, key) for row in index.tolist()]
        lengths = torch.tensor([self._length(steps) for steps, _ in rows], dtype=torch.int64)
        whole = self.targets.dim() > 1 and self.most == self.targets.shape[1]
        longest = self.most if whole else int(lengths.max())
        width = math.prod(self.shape)
        size, where = 4 * len(rows) * longest * width, f"{self.where}: a batch of {len(rows)}"
        check_memory(size, where, "set binning.end_ms or binning.pool, or make batches smaller")
        dense = torch.zeros(len(rows), longest, width)
        for place, (steps, numbers) in enumerate(rows):
            at = (torch.from_numpy(steps), torch.from_numpy(numbers))
            dense[place].index_put_(at, torch.ones(len(steps)), accumulate=True)
        dense = dense.clamp_(max=1) if self.binning.binary else dense
        weight = None if self.weight is None else self.weight[index]
        inputs = dense.reshape(len(rows), longest, *self.shape)
        return Batch(inputs, self.targets[index], index, None if whole else lengths, weight)

    def check(self) -> None:
        """Refuse events that cannot be binned, all rows at once.

        Raises:
            DataError: see the class.
        """
        if self.latest is not None:
            return
        for row in range(len(self)):
            self._read(row)

    def _drawn(self, row: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Return step and channel of every event of a trial, changed if it is learned from."""
        if key[1] < 0 or not self.augmentation.active:
            return self._read(row)
        times, fired = self._events(row)
        times, fired = self.augmentation(times, fired, self.sensor, key, row)
        found, fired = self._shown(times, fired)
        kept = found < self.steps
        return found[kept], fired[kept]

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return step and channel of every event of a trial."""
        times, fired = self._events(row)
        found, fired = self._shown(times, fired)
        if self.most and len(found) and found.max() >= self.most:
            raise DataError(
                f"{self.where}, row {row}: a spike at {times.max():g} ms is behind steps = "
                f"{self.most} of {self.dt_ms:g} ms: binning.end_ms leaves out what comes later"
            )
        return found, fired

    def _shown(self, times: np.ndarray, fired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return step and channel, after binning, of the events of the window."""
        if self.binning.windowed:
            end = self.binning.end_ms or np.inf
            inside = (times >= self.binning.start_ms) & (times < end)
            times, fired = times[inside] - self.binning.start_ms, fired[inside]
        found = self._binned(times)
        if self.binning.end_ms:  # the tolerance of an edge does not lead out of the window
            found = np.minimum(found, self.most - 1)
        return found, self.binning.channels(fired, self.sensor)

    def _events(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return time in ms and channel of every event of a trial, checked."""
        times = np.asarray(self.times[row]).astype(np.float64) * self.to_ms
        if len(times) and not (np.isfinite(times).all() and times.min() >= 0):
            raise DataError(f"{self.where}, row {row}: a time is negative or not finite")
        if len(times) and times.max() > LATEST_MS:
            raise DataError(
                f"{self.where}, row {row}: a time of {times.max():g} ms: is time_unit right?"
            )
        given = np.asarray(self.channels[row])
        if len(given) != len(times):
            raise DataError(f"{self.where}, row {row}: {len(times)} times, {len(given)} units")
        wrong = given[~((given >= 0) & (given < self.units) & (given % 1 == 0))]
        if len(wrong):
            raise DataError(
                f"{self.where}, row {row}: unit {wrong[0]} is outside 0..{self.units - 1}"
            )
        return times, given.astype(np.int64)

    def _binned(self, times: np.ndarray) -> np.ndarray:
        # a time on the edge of a step, but for rounding, belongs behind it
        return np.floor(times / self.dt_ms + 1e-6).astype(np.int64)

    @staticmethod
    def _length(bins: np.ndarray) -> int:
        return int(bins.max()) + 1 if len(bins) else 1


def of_request(
    request: Request,
    times: Any,
    channels: Any,
    targets: Tensor,
    units: int,
    unit: str,
    **more: Any,
) -> Events:
    """Return events that are binned and changed as a recipe says.

    Args:
        unit: of the times, a name of ``TO_MS``.
        more: for :class:`Events`.

    Raises:
        RecipeError, DataError: see there.
    """
    recipe, where = request.recipe, f"dataset {request.name}"
    return Events(
        times,
        channels,
        targets,
        units,
        request.dt_ms,
        to_ms=TO_MS[unit],
        steps=recipe.steps,
        binning=construct(Binning, recipe.binning, where, "binning"),
        augmentation=construct(Augmentation, recipe.augmentation, where, "augmentation"),
        **more,
    )
