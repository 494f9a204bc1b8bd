"""HDF5: large inputs are read row by row, in every process by a handle of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.data.digests import of_files
from biograd.data.files.own_paths import paths_of
from biograd.data.files.unpacking import check_dataset, check_heap
from biograd.data.request import Parts, Request
from biograd.data.rows import tables
from biograd.errors import DataError

IN_MEMORY = 500_000_000
"""Bytes up to which inputs are read as a whole."""
PIECE = 1024
"""Rows that are read at once of a column whose rows have lengths of their own."""


class Column:
    """A data set of an HDF5 file; the file is opened in each process when rows are asked for."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        self.path, self.name = path, name
        check_dataset(dataset, f"{path}: {name}")
        self.varying = dataset.dtype.hasobject
        self.shape, self.ragged = dataset.shape, h5py.check_vlen_dtype(dataset.dtype) is not None
        self.lazy = not self.ragged and dataset.size * dataset.dtype.itemsize > IN_MEMORY
        self._opened: tuple[int, h5py.Dataset] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Any:
        try:
            found = self._dataset[rows]
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{self.path}: {self.name}: cannot be read: {said}") from error
        return found.astype(str) if isinstance(found, np.ndarray) and _texts(found) else found

    def held(self) -> Any:
        """Return rows in memory, read as a whole, or the column itself where they are too large.

        A row of its own length takes HDF5 a quarter of a millisecond when it is read alone.
        """
        if not self.ragged:
            return self if self.lazy else self[:]
        rows: list[Any] = []
        size = 0
        for start in range(0, len(self), PIECE):
            more = self[start : start + PIECE]
            size += sum(np.asarray(row).nbytes for row in more)
            if size > IN_MEMORY:
                return self
            rows += list(more)
        return rows

    @property
    def _dataset(self) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            file = h5py.File(self.path, "r", locking="best-effort")
            self._opened = os.getpid(), file[self.name]
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _texts(values: np.ndarray) -> bool:
    one_axis = values.dtype.kind in "SO" and values.ndim == 1 and values.size > 0
    return one_axis and isinstance(values[0], bytes)


def read(request: Request) -> Parts:
    """Return the sources of one file, or of a file for each split.

    Raises:
        DataError: not HDF5, or its arrays are not what ``rows.tables`` asks for.
    """
    found = {split: read_file(path, request) for split, path in paths_of(request).items()}
    return tables.joined(found, request.name)


def read_file(path: Path, request: Request) -> Parts:
    """Return the sources of one file.

    Raises:
        DataError: see ``read``.
    """
    table: dict[str, Column] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            table[name] = Column(path, name, item)

    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            file.visititems(visit)
            varying = len(file.attrs) or any(column.varying for column in table.values())
            if varying:
                check_heap(file, path)
            attributes = dict(file.attrs)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as HDF5: {' '.join(str(error).split())}"
        ) from error
    about = tables.About.of(attributes, str(path), strict=False)
    return tables.read(table, request, str(path), about, of_files([path]))
