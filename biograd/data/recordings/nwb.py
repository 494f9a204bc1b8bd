"""Neurodata Without Borders: sorted spikes, trials, and behaviour, read as plain HDF5."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from biograd.checking import Checked, NotNegative
from biograd.data.files.own_paths import paths_of
from biograd.data.files.unpacking import check_dataset, check_heap
from biograd.data.formats import AddressEvents
from biograd.data.recordings.packed import read_packed
from biograd.data.recordings.sessions import TrialTable, courses, pieces
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows import tables
from biograd.errors import DataError, RecipeError, brief

UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
PLACES = ("processing", "acquisition", "stimulus/presentation")
"""Where courses in time lie."""


@dataclasses.dataclass(frozen=True)
class NwbSettings(Checked):
    """What is read of a file, and what is asked for.

    Attributes:
        target: column of the trials, whose values are classes, or a course in time (``hand_vel``).
        align: column of the trials, in seconds: of the time from which a piece is counted.
        before_ms, after_ms: the piece begins so long before it and ends so long after it.
        lag_ms: of a course: how much later its values are than the spikes that tell of them.
        group: column of the trials that names what stays together when rows are divided; "": none.
        held_out: whether units that are marked ``heldout`` are inputs too.
    """

    target: str = ""
    align: str = "start_time"
    before_ms: NotNegative = 0.0
    after_ms: NotNegative = 0.0
    lag_ms: float = 0.0
    group: str = ""
    held_out: bool = True


@with_settings(NwbSettings)
def read(request: Request, settings: NwbSettings) -> Parts:
    """Return the spikes of units around an event of each trial, ``[B, T, units]``.

    Targets are classes ``[B]``, or a course ``[B, T, k]`` in the unit of the file, NaN where it has
    no samples.  A column ``split`` of the trials is obeyed; trials of another word are left out.

    Raises:
        RecipeError: nothing says what the target or the piece is.
        DataError: the file has no units or trials, or is damaged.

    Source: O. Rübel et al., eLife 11:e78362 (2022).
    """
    if not settings.target or not settings.before_ms + settings.after_ms:
        raise RecipeError(
            f"dataset {request.name}: settings: give target, a column of the trials or a course, "
            "and before_ms and after_ms"
        )
    found = {split: _one(path, request, settings) for split, path in paths_of(request).items()}
    return tables.joined(found, request.name)


def _one(path: Path, request: Request, settings: NwbSettings) -> Parts:
    length = settings.before_ms + settings.after_ms
    steps = request.steps("before_ms + after_ms", length)
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            check_heap(file, path)
            trials = _trials(file, path)
            units, count = _units(file, path, settings.held_out)
            course = _course(file, path, settings.target, trials)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as NWB: {brief(str(error))}") from error
    start = np.round(trials.numbers(settings.align) * 1e6) - settings.before_ms * 1e3
    labels, classes = (np.zeros(len(trials), int), 0) if course else trials.classes(settings.target)
    examples, kept, notes = pieces(
        path, trials, start, start + length * 1e3, labels, settings.group
    )
    targets, task = None, ""
    if course is not None:
        begin = (start[kept] + settings.lag_ms * 1e3) * 1e-6
        targets, task = courses(*course, begin, steps, request.dt_ms * 1e-3), "time_series"
        if torch.isnan(targets).all():
            raise DataError(f"{path}: {settings.target}: no sample in any trial")
    how = [dataclasses.asdict(settings), request.dt_ms]
    recipe = dataclasses.replace(request.recipe, steps=request.recipe.steps or steps)
    asked = dataclasses.replace(request, recipe=recipe)
    parts = read_packed(asked, examples, lambda _path: units, (count,), how, classes, targets)
    return dataclasses.replace(parts, notes=notes, task=task)


def _dataset(group: Any, name: str, where: object) -> h5py.Dataset:
    """Return a data set that is there and says what its file can hold."""
    found = group.get(name) if isinstance(group, h5py.Group) else None
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where}: no {name}")
    if found.external:
        raise DataError(f"{where}: {name}: its values are in another file: write them here")
    check_dataset(found, f"{where}: {name}")
    return found


def _trials(file: h5py.File, path: Path) -> TrialTable:
    """Return the columns of the trials that have one value a trial."""
    where = f"{path}: intervals/trials"
    group = file.get("intervals/trials")
    rows = len(_dataset(group, "id", where))
    columns = {}
    for name in group:
        item = group[name]
        if (
            isinstance(item, h5py.Dataset)
            and item.shape == (rows,)
            and f"{name}_index" not in group
        ):
            values = _dataset(group, name, where)[()]
            text = values.dtype.kind in "SO"
            columns[name] = np.array([_text(v) for v in values]) if text else np.asarray(values)
    return TrialTable(columns, where)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _units(file: h5py.File, path: Path, held_out: bool) -> tuple[AddressEvents, int]:
    """Return the spikes of all units, in the order of time, and the number of units."""
    where, group = f"{path}: units", file.get("units")
    times = np.asarray(_dataset(group, "spike_times", where)[()], np.float64)
    # small types are usual: a difference of uint8 would wrap
    ends = np.asarray(_dataset(group, "spike_times_index", where)[()]).astype(np.int64)
    if times.ndim != 1 or ends.ndim != 1 or not len(ends):
        raise DataError(f"{where}: spike_times and its index must be columns")
    sizes = np.diff(ends, prepend=0)
    if (sizes < 0).any() or ends[-1] != len(times):
        raise DataError(f"{where}: spike_times_index: does not divide {len(times)} spike times")
    if not np.isfinite(times).all() or np.abs(times).max(initial=0) > 1e9:
        raise DataError(f"{where}: spike_times: a time is not finite")
    unit = np.repeat(np.arange(len(ends)), sizes)
    if "heldout" in group and not held_out:
        shown = ~np.asarray(_dataset(group, "heldout", where)[()]).astype(bool)
        if shown.shape != ends.shape or not shown.any():
            raise DataError(f"{where}: heldout: must be a value for each unit, not all true")
        kept = shown[unit]
        times, unit = times[kept], (np.cumsum(shown) - 1)[unit[kept]]
        count = int(shown.sum())
    else:
        count = len(ends)
    order = np.argsort(times, kind="stable")
    return AddressEvents(np.round(times[order] * 1e6).astype(np.int64), unit[order, None]), count


def _course(
    file: h5py.File, path: Path, name: str, trials: TrialTable
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return times in seconds and values ``[n, k]`` of a course; None: a column has that name."""
    if name in trials.columns:
        return None
    found = list[h5py.Group]()

    def visit(place: str, item: Any) -> None:
        named = f"/{place}".endswith(f"/{name}")
        if named and isinstance(item, h5py.Group) and "data" in item:
            found.append(item)

    for top in PLACES:
        if isinstance(file.get(top), h5py.Group):
            file[top].visititems(visit)
    if len(found) != 1:
        what = f"{len(found)} courses" if found else "no course and no column of the trials"
        raise DataError(
            f"{path}: settings.target = {name!r}: {what} of that name: the columns are "
            f"{', '.join(trials.columns)}"
        )
    return _samples(found[0], f"{path}: {name}")


def _samples(group: h5py.Group, where: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(_dataset(group, "data", where)[()], np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if "timestamps" in group:
        times = np.asarray(_dataset(group, "timestamps", where)[()], np.float64)
    else:
        start = _dataset(group, "starting_time", where)
        rate = float(start.attrs.get("rate", 0))
        if not rate > 0:
            raise DataError(f"{where}: starting_time: rate must be more than 0")
        times = float(start[()]) + np.arange(len(values)) / rate
    if values.ndim != 2 or times.shape != values.shape[:1] or len(times) < 2:
        raise DataError(f"{where}: data {list(values.shape)}, timestamps {list(times.shape)}")
    if not np.isfinite(times).all():
        raise DataError(f"{where}: timestamps: a time is not finite")
    return times, values
