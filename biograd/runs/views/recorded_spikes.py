"""The spikes of a layer, by trial; nothing is read before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from biograd.errors import RecipeError, RunFileError
from biograd.runs.layout import Array, LayerInfo

if TYPE_CHECKING:
    import neo
    import pynapple

BLOCK = 2**21
"""Spikes that are held at once while they are counted."""


class SpikeTrial(NamedTuple):
    """The spikes of one trial, in the order of time.

    Attributes:
        time_ms: since the start of the trial, float64 ``[spike]``.
        unit: int64 ``[spike]``.
        row: of the run's trials.
        snapshot, probe, label: which snapshot, which stimulus, its group.
    """

    time_ms: Array
    unit: Array
    row: int
    snapshot: int
    probe: int
    label: int


class SpikeRaster(NamedTuple):
    """Spikes of several trials: one entry of each array a spike.

    Attributes:
        time_ms: since the start of its trial, float64.
        trial: number of the trial in the selection, int64.
        unit: int64.
    """

    time_ms: Array
    trial: Array
    unit: Array


class SpikeHistogram(NamedTuple):
    """Mean rate in bins of time over trials, each of which begins at 0.

    Attributes:
        start_ms, stop_ms: of the bins, float64 ``[bin]``; the last may be shorter.
        rate_hz: spikes a second, float64 ``[unit, bin]``.
    """

    start_ms: Array
    stop_ms: Array
    rate_hz: Array


class Spikes:
    """The spikes of one layer in some trials, by default all of the run.

    Trials begin at rest, each for itself: times within one count from its start. The raw columns
    are those of SONATA, one raster of all trials with gaps between them, in which a rate over all
    of the time, or an interval from one trial to the next, means nothing. Trial ``k`` of the
    selection owns ``timestamps[trial_ptr[k]:trial_ptr[k + 1]]``.

    Attributes:
        layer: module path.
        info: what the run says of the layer.
        rows: of the run's trials, those selected, int64 ``[trial]``.
        trials: start_ms, stop_ms, snapshot, probe and label of these.
    """

    def __init__(
        self,
        layer: str,
        info: LayerInfo,
        trials: Mapping[str, Array],
        pointer: Array,
        read: Callable[[str, int, int], Array],
        rows: Array | None = None,
    ) -> None:
        """Show trials of a run; ``read`` gives a column's values from one spike to another."""
        self.layer, self.info, self._all = layer, info, trials
        self._pointer, self._read = pointer, read
        self.rows: Array = np.arange(len(pointer) - 1) if rows is None else rows
        self.trials = {name: values[self.rows] for name, values in trials.items()}

    def __len__(self) -> int:
        """Return the number of spikes."""
        return int(self.trial_ptr[-1])

    def __repr__(self) -> str:
        """Return the layer and the sizes."""
        return (
            f"<{len(self)} spikes of {self.layer!r}: {len(self.units)} units, {len(self.rows)} "
            f"trials of {self.duration_ms:g} ms, step {self.dt_ms:g} ms>"
        )

    @property
    def units(self) -> Array:
        """Indices of the recorded units, increasing, int64 ``[unit]``."""
        return self.info.units

    @property
    def dt_ms(self) -> float:
        """Length of a step, ms."""
        return float(self.info.dt_ms or 0)

    @property
    def duration_ms(self) -> float:
        """Length of a trial, ms."""
        return self.dt_ms * (self.info.n_steps or 0)

    @property
    def trial_ptr(self) -> Array:
        """Where the spikes of each trial begin, and where the last end, uint64 ``[trial + 1]``."""
        counts = self._pointer[self.rows + 1] - self._pointer[self.rows]
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(counts, dtype=np.uint64)])

    @property
    def timestamps(self) -> Array:
        """Time in the raster of all trials, ms, float64 ``[spike]``."""
        return self._column("timestamps")

    @property
    def node_ids(self) -> Array:
        """Unit of each spike, uint64 ``[spike]``."""
        return self._column("node_ids")

    @property
    def trial_ids(self) -> Array:
        """Row of the run's trials of each spike, uint32 ``[spike]``."""
        return np.repeat(self.rows, np.diff(self.trial_ptr).astype(np.int64)).astype(np.uint32)

    def snapshot(self, number: int) -> Spikes:
        """Return the trials of one snapshot; negative counts from the end.

        Raises:
            RunFileError: there is no such snapshot.
        """
        numbers = self._all["snapshot"]
        count = int(numbers.max()) + 1 if len(numbers) else 0
        found = number + count if number < 0 else number
        if not 0 <= found < count:
            raise RunFileError(f"no snapshot {number}, the run has {count} with spikes")
        return self.select(snapshot=found)

    def select(
        self, *, snapshot: int | None = None, probe: int | None = None, label: int | None = None
    ) -> Spikes:
        """Return those of the trials that are of a snapshot, a stimulus, a group, or all three."""
        asked = {"snapshot": snapshot, "probe": probe, "label": label}
        keep = np.ones(len(self.rows), bool)
        for name, value in asked.items():
            keep &= True if value is None else self.trials[name] == value
        return Spikes(self.layer, self.info, self._all, self._pointer, self._read, self.rows[keep])

    def part(self, start: int, stop: int) -> Spikes:
        """Return the trials of the selection from one to another."""
        rows = self.rows[start:stop]
        return Spikes(self.layer, self.info, self._all, self._pointer, self._read, rows)

    def trial(self, number: int) -> SpikeTrial:
        """Return the spikes of one trial of the selection; negative counts from the end.

        Raises:
            RunFileError: there is no such trial.
        """
        count = len(self.rows)
        if not -count <= number < count:
            raise RunFileError(f"layer {self.layer}: no trial {number}, there are {count}")
        row = int(self.rows[number])
        one = next(self._blocks(self.rows[[number]]))
        about = {name: int(self._all[name][row]) for name in ("snapshot", "probe", "label")}
        return SpikeTrial(one.step * self.dt_ms, self.units[one.position], row, **about)

    def counts(self) -> Array:
        """Return the number of spikes, int64 ``[trial, unit]``."""
        shape = (len(self.rows), len(self.units))
        found = np.zeros(shape, np.int64)
        for block in self._blocks(self.rows):
            flat = (block.trial - block.first) * shape[1] + block.position
            size = block.trials * shape[1]
            sums = np.bincount(flat, minlength=size).reshape(-1, shape[1])
            found[block.first : block.first + block.trials] = sums
        return found

    def rates(self) -> Array:
        """Return spikes a second of model time, Hz, float64 ``[trial, unit]``."""
        return self.counts() / (self.duration_ms / 1000)

    def psth(self, bin_ms: float | None = None) -> SpikeHistogram:
        """Return the peristimulus time histogram over the selected trials.

        Args:
            bin_ms: width of a bin, a multiple of the step; None: one step.

        Raises:
            RecipeError: it is no multiple, or no trial is selected.
        """
        steps = round((bin_ms or self.dt_ms) / self.dt_ms)
        if steps < 1 or not np.isclose(steps * self.dt_ms, bin_ms or self.dt_ms):
            raise RecipeError(f"bin_ms = {bin_ms}: not a multiple of the step, {self.dt_ms:g} ms")
        if not len(self.rows):
            raise RecipeError(f"layer {self.layer}: no trial is selected")
        total = int(self.info.n_steps or 0)
        edges = np.minimum(np.arange(0, total + steps, steps), total)
        counts = np.zeros((len(self.units), len(edges) - 1), np.int64)
        for block in self._blocks(self.rows):
            flat = block.position * counts.shape[1] + block.step // steps
            counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        seconds = np.diff(edges) * self.dt_ms / 1000 * len(self.rows)
        start, stop = edges[:-1] * self.dt_ms, edges[1:] * self.dt_ms
        return SpikeHistogram(start, stop, counts / seconds)

    def raster(self) -> SpikeRaster:
        """Return time within its trial, trial and unit of every spike."""
        blocks = list(self._blocks(self.rows))
        time, trial, unit = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(block, name) for block in blocks)])
            for name in ("step", "trial", "position")
        )
        return SpikeRaster(time * self.dt_ms, trial, self.units[unit])

    def dense(self) -> Array:
        """Return 1 where a unit fires, bool ``[trial, time, unit]``."""
        found = np.zeros((len(self.rows), self.info.n_steps or 0, len(self.units)), bool)
        for block in self._blocks(self.rows):
            found[block.trial, block.step, block.position] = True
        return found

    def to_neo(self) -> neo.Block:
        """Return a Block of Neo: a Segment a trial, a SpikeTrain a unit, times from its start.

        Raises:
            MissingExtraError: Neo is not installed.
        """
        from biograd.runs.views.converters import neo_block

        return neo_block(self)

    def to_pynapple(self) -> tuple[pynapple.TsGroup, pynapple.IntervalSet]:
        """Return a TsGroup of the units and the IntervalSet of the trials, which supports it.

        Raises:
            MissingExtraError: pynapple is not installed.
        """
        from biograd.runs.views.converters import pynapple_group

        return pynapple_group(self)

    def _column(self, name: str) -> Array:
        parts = [self._read(name, *self._bounds(first, last)) for first, last in self._spans()]
        return np.concatenate([self._read(name, 0, 0), *parts])

    def _bounds(self, first: int, last: int) -> tuple[int, int]:
        """Return the first spike of a trial and the end of another's, by rows."""
        return int(self._pointer[first]), int(self._pointer[last + 1])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yield first and last of every run of rows that follow one another."""
        breaks = np.flatnonzero(np.diff(self.rows) != 1) + 1
        for span in np.split(self.rows, breaks):
            if len(span):
                yield int(span[0]), int(span[-1])

    def _blocks(self, rows: Array) -> Iterator[_SpikeBlock]:
        """Yield trials that follow one another, as many as fit into a block."""
        at = 0
        while at < len(rows):
            end = at + 1
            begin = self._pointer[rows[at]]
            while (
                end < len(rows)
                and rows[end] == rows[end - 1] + 1
                and self._pointer[rows[end] + 1] - begin <= BLOCK
            ):
                end += 1
            yield self._block(rows[at:end], at)
            at = end

    def _block(self, rows: Array, first: int) -> _SpikeBlock:
        bounds = self._bounds(int(rows[0]), int(rows[-1]))
        time, node = (self._read(name, *bounds) for name in ("timestamps", "node_ids"))
        counts = (self._pointer[rows + 1] - self._pointer[rows]).astype(np.int64)
        local = np.repeat(np.arange(len(rows)), counts)
        elapsed = time - self._all["start_ms"][rows][local]
        with np.errstate(invalid="ignore"):
            step = np.rint(elapsed / self.dt_ms)
        position = np.searchsorted(self.units, node.astype(np.int64))
        position = np.minimum(position, len(self.units) - 1)
        wrong = (self.units[position] != node) | ~((step >= 0) & (step < (self.info.n_steps or 0)))
        if wrong.any():
            raise RunFileError(
                f"/spikes/{self.layer}: is damaged (a spike of unit {node[wrong][0]} at "
                f"{time[wrong][0]:g} ms is outside the layer or its trial)"
            )
        return _SpikeBlock(first, len(rows), local + first, step.astype(np.int64), position)


class _SpikeBlock(NamedTuple):
    """Spikes of trials that follow one another."""

    first: int
    trials: int
    trial: Array
    step: Array
    position: Array
