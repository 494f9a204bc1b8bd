"""Join the rows of several files into one, block by block, so that memory stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from biograd.runs.checked import CheckedFile
from biograd.runs.layout import STEPS, TRIALS, LayerInfo, counted_by, grows, units_of
from biograd.runs.parts.segments import Sources, growing, pointers, table_rows
from biograd.runs.stored_arrays import storage_options

Column = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape of a row, and dtype."""
Survey = tuple[dict[str, int], dict[str, Column]]

BLOCK = 16 * 2**20
"""Bytes that are copied at once."""


def merge(
    sources: Sources,
    output: h5py.File,
    layers: Mapping[str, LayerInfo],
    limits: Mapping[str, int] | None = None,
) -> None:
    """Write all growing data sets of ``sources`` into ``output``.

    Args:
        limits: rows to take of each table, by the data set that counts them; a table that it
            lacks is left out. None takes everything.
    """
    totals: Counter[str] = Counter()
    columns: dict[str, Column] = {}
    left = None if limits is None else dict(limits)
    surveys = [_survey(sources, file, left) for file in sources]
    for counts, found in surveys:
        totals.update(counts)
        columns.update(found)
    targets = {
        name: _create(output, name, (_length(name, totals), *column[0]), column[1], layers)
        for name, column in columns.items()
    }
    offsets: Counter[str] = Counter()
    for file, (counts, found) in zip(sources, surveys, strict=True):
        for name in found:
            _copy(name, file.dataset(name), targets[name], counts, offsets)
        offsets.update(counts)


def _survey(sources: Sources, file: CheckedFile, left: dict[str, int] | None) -> Survey:
    """Return the rows to take of each table and list of spikes of a file, and its columns.

    Args:
        file: of the sources, where to look.
        left: rows that may still be taken; what this file gives is taken off.
    """
    whole = counts = table_rows(file)
    if left is not None:
        counts = {name: min(rows, left[name]) for name, rows in counts.items() if name in left}
        for name, rows in counts.items():
            left[name] -= rows
    for layer in file.members("spikes"):
        if TRIALS in counts:
            pointer = pointers(file, f"spikes/{layer}")
            if len(pointer) != whole[TRIALS] + 1:
                raise file.damaged(f"spikes/{layer}/trial_ptr", "it does not count the trials")
            counts[f"spikes/{layer}/timestamps"] = int(pointer[counts[TRIALS]])
    found = [name for name in growing(file) if counted_by(name) in counts]
    items = {name: sources.column(file, name, whole) for name in found}
    for name, item in items.items():
        if len(item) < counts[counted_by(name)]:
            raise file.damaged(name, "it has fewer values than are counted")
    return counts, {name: (item.shape[1:], item.dtype) for name, item in items.items()}


def _length(name: str, totals: Mapping[str, int]) -> int:
    return totals[counted_by(name)] + name.endswith("/trial_ptr")


def _create(
    output: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layers: Mapping[str, LayerInfo],
) -> h5py.Dataset:
    fill = np.nan if dtype.kind == "f" else None
    options = storage_options(name, shape, dtype)
    dataset = output.create_dataset(name, shape, dtype, fillvalue=fill, **options)
    units = units_of(name, layers)
    if units is not None:
        dataset.attrs["units"] = units
    return dataset


def _copy(
    name: str,
    source: h5py.Dataset,
    target: h5py.Dataset,
    counts: Mapping[str, int],
    offsets: Mapping[str, int],
) -> None:
    rows, offset = counts[counted_by(name)], offsets[counted_by(name)]
    if name.endswith("/trial_ptr"):
        before = np.uint64(offsets[name.replace("trial_ptr", "timestamps")])
        target[offset : offset + rows + 1] = source[: rows + 1] + before
        return
    step = max(1, BLOCK // max(1, source.dtype.itemsize * int(np.prod(source.shape[1:]))))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        target[offset + start : offset + stop] = source[start:stop]


def link_scales(output: h5py.File) -> None:
    """Give every table its coordinates, and attach them to the axes of its data sets.

    Why copies of the coordinates: netCDF4 looks for a dimension in the group of a variable and
    above it, so a group with its own can be opened by xarray as it stands.
    """
    steps = output[STEPS][()] if STEPS in output else None
    for top in ("layers", "params", "learning"):
        for group in output.get(top, {}).values():
            if steps is not None and set(group) != {"unit"}:
                group["snapshot"] = steps
                if "activation" in group:
                    group["probe"] = output["probe/index"][()]
    names: list[str] = []
    output.visit(names.append)
    for name in names:
        item = output[name]
        if not isinstance(item, h5py.Dataset) or not grows(name):
            continue
        for axis, scale in enumerate(_scales(name)):
            if scale != name and scale in output:
                if not output[scale].is_scale:
                    output[scale].make_scale(scale.split("/")[-1])
                item.dims[axis].attach_scale(output[scale])
                item.dims[axis].label = scale.split("/")[-1]


def _scales(name: str) -> list[str]:
    """Return the coordinates of the axes of a growing data set."""
    top, *rest = name.split("/")
    if top in ("layers", "params", "learning"):
        axes = ["snapshot"]
        if top == "layers":
            axes += ["probe", "unit"] if rest[-1] == "activation" else ["unit"]
        return [f"{top}/{rest[0]}/{axis}" for axis in axes]
    return [] if top == "spikes" else [counted_by(name)]
