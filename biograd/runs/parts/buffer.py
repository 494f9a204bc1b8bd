"""Rows that wait in memory for the next commit, and the segment that they become.

Adding a row of scalars appends to a list; arrays are made once, at the commit.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from biograd.errors import RecipeError
from biograd.runs.layout import STATISTICS, Array, LayerInfo, Probe, Raster, as_array, check_name
from biograd.runs.schema.row_info import RowInfo
from biograd.runs.schema.run_tables import STEPS
from biograd.runs.stored_arrays import mark_sorted, storage_options

RESERVED = ("step", "epoch", "wall_time")
ROW_BYTES = 64
"""Estimate of what a row of scalars needs besides its values."""

Row = tuple[int, int, float, dict[str, float]]


@dataclasses.dataclass
class LayerRecord:
    """What one layer did in one snapshot.

    Attributes:
        activation: float32 ``[probe, unit]``.
        spikes: probe, step and position of the unit of each spike, sorted, or None.
    """

    activation: Array
    spikes: tuple[Array, Array, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the segment that this will need before compression."""
        return self.activation.nbytes + (0 if self.spikes is None else 20 * len(self.spikes[0]))

    def statistics(self) -> dict[str, Array]:
        """Return mean, std, frac_active and max over the probes, float32 ``[unit]`` each."""
        values = self.activation.astype(np.float64)
        missing = np.isnan(values).any(0)
        with np.errstate(invalid="ignore"):  # a diverged network's statistics are not finite
            results = {
                "mean": values.mean(0),
                "std": values.std(0),
                "frac_active": np.where(missing, np.nan, (values > 0).mean(0)),
                "max": values.max(0),
            }
        return {name: results[name].astype(np.float32) for name in STATISTICS}


@dataclasses.dataclass
class Snapshot:
    """One look at the network."""

    step: int
    epoch: int
    wall_time: float
    layers: dict[str, LayerRecord]
    values: dict[str, float]
    further: dict[str, Array] = dataclasses.field(default_factory=dict)


class Buffer:
    """Rows since the last commit."""

    def __init__(
        self,
        layers: Mapping[str, LayerInfo],
        probe: Probe | None,
        known: Mapping[str, RowInfo] | None = None,
    ) -> None:
        """Start empty; ``known`` are data sets that only this run has."""
        self.layers, self.known = layers, known or {}
        self.probe = probe
        self.raster = Raster.of(layers, probe)
        self.scalars: dict[str, list[Row]] = {}
        self.snapshots: list[Snapshot] = []
        self.nbytes = 0

    def __bool__(self) -> bool:
        """Whether rows wait."""
        return bool(self.scalars or self.snapshots)

    def add_scalars(self, stream: str, row: Row) -> None:
        """Append one row to a stream."""
        if stream not in self.scalars:
            self.scalars[check_name("stream", stream)] = []
        self.scalars[stream].append(row)
        self.nbytes += ROW_BYTES + 4 * len(row[3])

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Append one snapshot."""
        self.snapshots.append(snapshot)
        self.nbytes += sum(record.nbytes for record in snapshot.layers.values())
        self.nbytes += ROW_BYTES + 4 * len(snapshot.values)
        self.nbytes += sum(values.nbytes for values in snapshot.further.values())

    def further(self, name: str, values: Any) -> Array:
        """Return a row of a data set that only this run has, float32.

        Raises:
            RecipeError: the run said nothing of it, or said another shape.
        """
        array = as_array(values)
        if name not in self.known or array.shape != self.known[name].shape:
            owed = self.known[name].shape if name in self.known else "none such"
            raise RecipeError(f"snapshot: {name} {array.shape} is not what the run said: {owed}")
        with np.errstate(over="ignore"):
            return np.array(array, np.float32)

    def rows(self) -> dict[str, int]:
        """Return the number of waiting rows of every table, by the data set that counts them."""
        rows = {f"scalars/{name}/step": len(values) for name, values in self.scalars.items()}
        if self.snapshots:
            rows[STEPS] = len(self.snapshots)
            if self.raster is not None:
                rows["trials/start_ms"] = len(self.snapshots) * self.raster.probes
        return rows

    def drop(self, rows: Mapping[str, int]) -> None:
        """Forget the first rows of every table, counted as :meth:`rows` does."""
        for stream in list(self.scalars):
            del self.scalars[stream][: rows.get(f"scalars/{stream}/step", 0)]
            if not self.scalars[stream]:
                del self.scalars[stream]
        del self.snapshots[: rows.get(STEPS, 0)]
        if not self:
            self.nbytes = 0

    def arrays(self, first_snapshot: int) -> dict[str, Array]:
        """Return the data sets of the segment; ``first_snapshot`` were committed before."""
        arrays: dict[str, Array] = {}
        for stream, rows in self.scalars.items():
            arrays.update(_table(f"scalars/{stream}", rows))
        if self.snapshots:
            arrays.update(self._snapshot_arrays())
            if self.raster is not None and self.probe is not None:
                arrays.update(_trials(self.raster, self.probe, first_snapshot, self.snapshots))
                for name, layer in self.layers.items():
                    if layer.kind == "spiking":
                        arrays.update(self._spikes(name, layer, self.raster, first_snapshot))
        return arrays

    def _snapshot_arrays(self) -> dict[str, Array]:
        rows: list[Row] = [(s.step, s.epoch, s.wall_time, s.values) for s in self.snapshots]
        table = _table("snapshots", rows)
        own = {f"snapshots/{name}": table.pop(f"snapshots/{name}") for name in RESERVED}
        arrays = {**own, **{name.removeprefix("snapshots/"): v for name, v in table.items()}}
        for name in self.layers:
            records = [snapshot.layers.get(name) for snapshot in self.snapshots]
            if any(record is not None for record in records):
                arrays.update(_layer_arrays(name, records))
        for name in dict.fromkeys(name for one in self.snapshots for name in one.further):
            blank = np.full(self.known[name].shape, np.nan, np.float32)
            arrays[name] = np.stack([one.further.get(name, blank) for one in self.snapshots])
        return arrays

    def _spikes(
        self, name: str, layer: LayerInfo, raster: Raster, first_snapshot: int
    ) -> dict[str, Array]:
        units = layer.units.astype(np.uint64)
        trials, steps, nodes = [], [], []
        for number, snapshot in enumerate(self.snapshots, first_snapshot):
            record = snapshot.layers.get(name)
            if record is not None and record.spikes is not None:
                probe, step, position = record.spikes
                trials.append(number * raster.probes + probe.astype(np.int64))
                steps.append(step)
                nodes.append(units[position])
        trial = np.concatenate([np.zeros(0, np.int64), *trials])
        step = np.concatenate([np.zeros(0, np.int64), *steps])
        first = first_snapshot * raster.probes
        last = first + len(self.snapshots) * raster.probes
        return {
            f"spikes/{name}/timestamps": raster.start_ms(trial) + step * float(layer.dt_ms or 0),
            f"spikes/{name}/node_ids": np.concatenate([np.zeros(0, np.uint64), *nodes]),
            f"spikes/{name}/trial_ids": trial.astype(np.uint32),
            f"spikes/{name}/trial_ptr": np.searchsorted(trial, np.arange(first, last + 1)).astype(
                np.uint64
            ),
        }


def _table(prefix: str, rows: Sequence[Row]) -> dict[str, Array]:
    """Return the columns of a table; a value that a row lacks is NaN."""
    arrays: dict[str, Array] = {
        f"{prefix}/step": np.array([row[0] for row in rows], np.int64),
        f"{prefix}/epoch": np.array([row[1] for row in rows], np.int32),
        f"{prefix}/wall_time": np.array([row[2] for row in rows], np.float64),
    }
    names = dict.fromkeys(name for row in rows for name in row[3])
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        for name in names:
            column = np.array([row[3].get(name, np.nan) for row in rows], np.float64)
            arrays[f"{prefix}/{name}"] = column.astype(np.float32)
    return arrays


def _layer_arrays(name: str, records: Sequence[LayerRecord | None]) -> dict[str, Array]:
    shape = next(record.activation.shape for record in records if record is not None)
    blank = LayerRecord(np.full(shape, np.nan, np.float32))
    filled = [blank if record is None else record for record in records]
    statistics = [record.statistics() for record in filled]
    arrays = {f"layers/{name}/activation": np.stack([record.activation for record in filled])}
    for key in STATISTICS:
        arrays[f"layers/{name}/stats/{key}"] = np.stack([values[key] for values in statistics])
    return arrays


def _trials(
    raster: Raster, probe: Probe, first_snapshot: int, snapshots: Sequence[Snapshot]
) -> dict[str, Array]:
    number = np.arange(first_snapshot, first_snapshot + len(snapshots))
    trials = np.arange(number[0] * raster.probes, (number[-1] + 1) * raster.probes)
    start = raster.start_ms(trials)
    return {
        "trials/start_ms": start,
        "trials/stop_ms": start + raster.duration_ms,
        "trials/snapshot": np.repeat(number, raster.probes).astype(np.int32),
        "trials/probe": np.tile(np.arange(raster.probes), len(number)).astype(np.int32),
        "trials/label": np.tile(as_array(probe.label), len(number)).astype(np.int32),
    }


def record(name: str, values: Any, layer: LayerInfo, probes: int) -> LayerRecord:
    """Return what to keep of the activity of one layer.

    Args:
        name: of the layer, for the error.
        values: ``[probe, *units]``; of a spiking layer ``[probe, time, *units]``, 0 or 1.
        layer: what the run says of the layer.
        probes: number of stimuli.

    Raises:
        RecipeError: the shape is not that of the layer, or spikes are not 0 or 1.
    """
    array = as_array(values)
    spiking = layer.kind == "spiking"
    lead: tuple[int, ...] = (probes, int(layer.n_steps or 0)) if spiking else (probes,)
    units = layer.units
    width = math.prod(array.shape[len(lead) :]) if array.ndim > len(lead) else 0
    if array.shape[: len(lead)] != lead or width not in (layer.n_units, len(units)):
        expected = (*lead, layer.n_units)
        raise RecipeError(f"layer {name} ({layer.kind}): activity {array.shape} is not {expected}")
    array = array.reshape(*lead, width)
    if width != len(units):
        array = array[..., units]
    if not spiking:
        return LayerRecord(np.array(array, np.float32))
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        raise RecipeError(f"layer {name}: spikes must be 0 or 1; is this a rate?")
    fired = array != 0
    probe, step, position = np.nonzero(fired)
    rate = (fired.sum(1) / lead[1]).astype(np.float32)
    return LayerRecord(rate, (probe.astype(np.uint32), step.astype(np.uint32), position))


def segment_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return an HDF5 file with the given data sets as bytes, made in memory.

    Why in memory: the file system is then asked for one plain write, which either succeeds or
    says why not; HDF5 cannot always close a file on a full disk.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:
        for name, values in arrays.items():
            options = storage_options(name, values.shape, values.dtype)
            file.create_dataset(name, data=values, **options)
        for group in file.get("spikes", {}).values():
            mark_sorted(group)
    return memory.getvalue()
