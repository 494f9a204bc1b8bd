"""Join the rows of several files into one, block by block, so that memory stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from biograd.runs.checked import CheckedFile
from biograd.runs.parts.segments import Sources, growing, pointers, table_rows
from biograd.runs.schema.run_tables import TRIALS, counted_by
from biograd.runs.stored_arrays import storage_options

Column = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape of a row, and dtype."""
Survey = tuple[dict[str, int], dict[str, Column]]

BLOCK = 16 * 2**20
"""Bytes that are copied at once."""


def merge(
    sources: Sources,
    output: h5py.File,
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
        name: _create(output, name, (_length(name, totals), *column[0]), column[1])
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
) -> h5py.Dataset:
    fill = np.nan if dtype.kind == "f" else None
    options = storage_options(name, shape, dtype)
    return output.create_dataset(name, shape, dtype, fillvalue=fill, **options)


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
