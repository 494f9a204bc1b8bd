"""NumPy's ``.npz``: arrays by name, without pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from biograd.data.request import Parts, Request
from biograd.data.rows import tables
from biograd.data.sources.own_files import paths_of
from biograd.errors import DataError


def read(request: Request) -> Parts:
    """Return the sources of one file, or of a file for each split.

    Raises:
        DataError: not ``.npz``, an array of objects, or not what ``layout`` asks for.
    """
    found = {split: _one(path, request) for split, path in paths_of(request).items()}
    return tables.joined(found, request.name)


def _one(path: Path, request: Request) -> Parts:
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: _array(file, name, path) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as npz: {error}") from error
    return tables.read(table, request, str(path))


def _array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        raise DataError(
            f"{path}: {name}: an array of objects: write rows of different lengths one behind the "
            "other, with offsets"
        ) from error
