"""The data sets of a run, with their sizes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from biograd.errors import natural
from biograd.runs.checked import PLAIN, CheckedFile
from biograd.runs.parts.segments import Sources, table_rows
from biograd.runs.schema.run_tables import counted_by, grows


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of a run: logical bytes, and bytes on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored: int


def entries(sources: Sources) -> list[Entry]:
    """Return every data set, sorted by name; those of several files as one."""
    found: dict[str, Entry] = {}
    totals: Counter[str] = Counter()
    for file in sources:
        totals.update(table_rows(file))
        for entry in _entries(file):
            found[entry.name] = _add(found.get(entry.name), entry)
    return [_full(found[name], totals) for name in sorted(found, key=natural)]


def _entries(file: CheckedFile) -> Iterator[Entry]:
    for name in file.datasets():
        item = file.dataset(name, PLAIN + "O")
        yield Entry(name, item.shape, str(item.dtype), item.nbytes, item.id.get_storage_size())


def _add(total: Entry | None, entry: Entry) -> Entry:
    if total is None:
        return entry
    rows = total.shape[0] + entry.shape[0]
    stored = total.stored + entry.stored
    return dataclasses.replace(entry, shape=(rows, *entry.shape[1:]), stored=stored)


def _full(entry: Entry, totals: Mapping[str, int]) -> Entry:
    """Count the rows of the table, also where a segment lacks the column."""
    shape = entry.shape
    if grows(entry.name) and counted_by(entry.name) in totals:
        rows = totals[counted_by(entry.name)] + entry.name.endswith("/trial_ptr")
        shape = (rows, *shape[1:])
    nbytes = math.prod(shape) * np.dtype(entry.dtype).itemsize
    return dataclasses.replace(entry, shape=shape, nbytes=nbytes)
