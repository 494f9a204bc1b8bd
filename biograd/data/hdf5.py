"""HDF5: large inputs are read row by row, in every process by a handle of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from biograd.data import layout
from biograd.data.arrays import as_inputs
from biograd.data.digests import of_files
from biograd.data.files import paths_of
from biograd.data.request import Parts, Request
from biograd.data.source import FIXED, Batch, Key
from biograd.errors import DataError

IN_MEMORY = 500_000_000
"""Bytes up to which inputs are read as a whole."""


class Column:
    """A data set of an HDF5 file; the file is opened in each process when rows are asked for."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        self.path, self.name = path, name
        self.shape, self.ragged = dataset.shape, h5py.check_vlen_dtype(dataset.dtype) is not None
        self.lazy = not self.ragged and dataset.size * dataset.dtype.itemsize > IN_MEMORY
        self._opened: tuple[int, h5py.Dataset] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Any:
        found = self._dataset[rows]
        return found.astype(str) if isinstance(found, np.ndarray) and _texts(found) else found

    @property
    def _dataset(self) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            file = h5py.File(self.path, "r", locking="best-effort")
            self._opened = os.getpid(), file[self.name]
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _texts(values: np.ndarray) -> bool:
    return values.dtype.kind in "SO" and values.ndim == 1 and isinstance(values.flat[0], bytes)


class LazyRows:
    """Rows of inputs that stay in their file, with targets in memory."""

    def __init__(
        self,
        inputs: Column,
        targets: Tensor,
        timed: bool,
        weight: Tensor | None,
        digest: str,
        where: str,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{where}: {len(inputs)} rows of x, {len(targets)} of y")
        self.inputs, self.targets, self.timed = inputs, targets, timed
        self.weight, self.digest, self.where = weight, digest, where
        self.shape = tuple(inputs.shape[1 + timed :])
        self.steps = int(inputs.shape[1]) if timed else 1

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``: each is read once, in the order of the file."""
        rows, back = index.unique(return_inverse=True)
        first, last = int(rows[0]), int(rows[-1])
        whole = last - first + 1 == len(rows)
        found = self.inputs[slice(first, last + 1) if whole else rows.numpy()]
        inputs = as_inputs(found, self.where)[back]
        weight = None if self.weight is None else self.weight[index]
        return Batch(inputs, self.targets[index], index, None, weight)


def read(request: Request) -> Parts:
    """Return the sources of one file, or of a file for each split.

    Raises:
        DataError: not HDF5, or its arrays are not what ``layout`` asks for.
    """
    found: dict[str, Parts] = {}
    paths = paths_of(request)
    for split, path in paths.items():
        found[split] = _one(path, request)
    return layout.joined(found, request.name)


def _one(path: Path, request: Request) -> Parts:
    table: dict[str, Column] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            table[name] = Column(path, name, item)

    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            file.visititems(visit)
            attributes = dict(file.attrs)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read as HDF5: {' '.join(str(error).split())}"
        ) from error
    about = layout.About.of(attributes, str(path), strict=False)
    return layout.read(table, request, str(path), about, of_files([path]))
