"""Events of many files in one, written once into the cache: HDF5 that is read row by row.

The name of the file holds the digest of all that it depends on: the files' contents, labels and
pieces, and how they were read.  It takes its place in one step, so that a kill leaves nothing, and
its pieces have checksums.  It has the layout of one's own event files (``rows.tables``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from biograd.data.digests import combined, hash_of, of_files, sha256_of
from biograd.data.files import fetch
from biograd.data.formats import AddressEvents
from biograd.data.recordings.labelled import LabelledFile, splits_of
from biograd.data.request import Parts, Request
from biograd.data.rows.events import Events, Flat, of_request
from biograd.data.source import rows_of
from biograd.data.sources.hdf5 import IN_MEMORY, Column
from biograd.disk.hdf5_streams import create
from biograd.errors import DataError

VERSION = 1
"""Of how events are packed: another number makes all files anew."""
PIECE = 1 << 14
Reader = Callable[[Path], AddressEvents]


def read_packed(
    request: Request,
    examples: Sequence[LabelledFile],
    reader: Reader,
    shape: tuple[int, ...],
    how: object,
    classes: int,
    targets: Tensor | None = None,
) -> Parts:
    """Return the sources of examples, packed if they are not yet.

    Args:
        reader: returns the events of a file.
        shape: of the sensor; (): of the largest address, along each axis.
        how: what the events depend on beside the files, for JSON.
        targets: ``[N, ...]``; None: the labels.

    Raises:
        DataError: a file is damaged, an event outside of the sensor, or the cache not writable.
    """
    splits = splits_of(examples, request.name)
    paths = sorted({example.path for example in examples})
    number = {path: place for place, path in enumerate(paths)}
    known = [[number[e.path], *dataclasses.astuple(e)[1:]] for e in examples]
    described = [VERSION, known, list(shape), how]
    digest = combined(of_files(paths), hash_of(described))
    place = fetch.cache_folder("packed_events") / f"{digest}.h5"
    if not _good(place, digest):
        _write(place, examples, reader, shape, digest)
    return _parts(request, place, examples, splits, digest, classes, targets)


def _good(place: Path, digest: str) -> bool:
    """Return whether the packed file is there and can be opened."""
    try:
        with h5py.File(place, "r", locking="best-effort") as file:
            return str(file.attrs["digest"]) == digest and {"times", "units", "offsets"} <= set(
                file
            )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return False


def cut(examples: Sequence[LabelledFile], reader: Reader) -> Iterator[AddressEvents]:
    """Yield the events of each example; a file is read once for examples that follow each other."""
    path, events = None, None
    for example in examples:
        if events is None or example.path != path:
            path, events = example.path, reader(example.path)
        end = example.end_us
        whole = not example.start_us and end is None
        yield events if whole else events.between(example.start_us, 2**62 if end is None else end)


def _write(
    place: Path,
    examples: Sequence[LabelledFile],
    reader: Reader,
    shape: tuple[int, ...],
    digest: str,
) -> None:
    shape = shape or _extent(examples, reader)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with create(place) as file:
            columns = {name: _column(file, name, kind) for name, kind in KINDS.items()}
            offsets, latest = [0], []
            for example, events in zip(examples, cut(examples, reader), strict=True):
                numbers = events.numbers(shape, example.path)
                if len(events) and events.times.min() < 0:
                    raise DataError(f"{example.path}: a time is negative")
                _append(columns["times"], events.times)
                _append(columns["units"], numbers)
                offsets.append(offsets[-1] + len(events))
                latest.append(int(events.times.max(initial=0)))
            file["offsets"], file["extra/latest"] = np.array(offsets), np.array(latest)
            file["labels"] = np.array([example.label for example in examples])
            attributes = {"time_unit": "us", "n_units": math.prod(shape), "digest": digest}
            file.attrs.update({**attributes, "shape": shape})
    except OSError as error:
        raise DataError(
            f"{place.parent}: the packed events cannot be written: {error.strerror or error}: give "
            "XDG_CACHE_HOME a folder with room"
        ) from error


KINDS = {"times": "i8", "units": "u4"}


def _column(file: h5py.File, name: str, kind: str) -> h5py.Dataset:
    return file.create_dataset(
        name, (0,), kind, maxshape=(None,), chunks=(PIECE,),
        compression="lzf", shuffle=True, fletcher32=True,
    )  # fmt: skip


def _append(column: h5py.Dataset, values: np.ndarray) -> None:
    start = len(column)
    column.resize((start + len(values),))
    column[start:] = values


def _extent(examples: Sequence[LabelledFile], reader: Reader) -> tuple[int, ...]:
    """Return the smallest shape that holds all events."""
    most: np.ndarray | None = None
    for example, events in zip(examples, cut(examples, reader), strict=True):
        if events.shape:
            return events.shape
        if most is not None and len(most) != events.places.shape[1]:
            raise DataError(
                f"{example.path}: events have {events.places.shape[1]} axes, not {len(most)}"
            )
        largest = events.places.max(0, initial=0)
        most = largest if most is None else np.maximum(most, largest)
    assert most is not None
    shape = tuple(int(each) + 1 for each in most)
    if math.prod(shape) > 2**31:
        raise DataError(f"{examples[0].path}: the events need a sensor of {list(shape)}: set shape")
    return shape


def _parts(
    request: Request,
    place: Path,
    examples: Sequence[LabelledFile],
    splits: list[str],
    digest: str,
    classes: int,
    targets: Tensor | None,
) -> Parts:
    events = _events(request, place, digest, targets)
    found = {}
    for split in splits:
        rows = [row for row, example in enumerate(examples) if example.split == split]
        whole = len(rows) == len(examples)
        found[split or "train"] = events if whole else rows_of(events, torch.tensor(rows))
    return Parts(found, groups_of(examples, splits[0]), classes=classes)


def groups_of(examples: Sequence[LabelledFile], split: str) -> Tensor | None:
    """Return a number for the group of each example of a split; None: they have none."""
    named = [example.group for example in examples if example.split == split]
    number = {name: place for place, name in enumerate(sorted(set(named)))}
    return torch.tensor([number[name] for name in named]) if all(number) else None


def _events(request: Request, place: Path, digest: str, targets: Tensor | None) -> Events:
    where = f"{request.name} (packed in {place.name[:12]})"
    if targets is not None:
        digest = combined(digest, sha256_of(targets))
    try:
        with h5py.File(place, "r", locking="best-effort") as file:
            columns: dict[str, Any] = {name: Column(place, name, file[name]) for name in KINDS}
            offsets, latest = file["offsets"][()], file["extra/latest"][()]
            labels = torch.from_numpy(file["labels"][()]).long()
            shape = tuple(int(size) for size in file.attrs["shape"])
            if sum(file[name].size * file[name].dtype.itemsize for name in KINDS) < IN_MEMORY:
                columns = {name: file[name][()] for name in KINDS}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{place}: the packed events are damaged, remove them: {said}") from error
    times, units = (Flat(columns[name], offsets) for name in ("times", "units"))
    return of_request(
        request, times, units, labels if targets is None else targets, math.prod(shape), "us",
        sensor=shape, latest=latest, digest=digest, where=where,
    )  # fmt: skip
