"""NumPy's ``.npz``: arrays by name, without pickles."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from biograd.data.files.own_paths import paths_of
from biograd.data.files.unpacking import check_memory, check_size, read_npy
from biograd.data.request import Parts, Request
from biograd.data.rows import tables
from biograd.errors import DataError, brief


def read(request: Request) -> Parts:
    """Return the sources of one file, or of a file for each split.

    Raises:
        DataError: not ``.npz``, an array of objects, or not what ``rows.tables`` asks for.
    """
    found = {split: _one(path, request) for split, path in paths_of(request).items()}
    return tables.joined(found, request.name)


def _one(path: Path, request: Request) -> Parts:
    table = {}
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                where = f"{path}: {info.filename}"
                check_size(info.file_size, info.compress_size, where)
                check_memory(info.file_size, where)
                with file.open(info) as stream:
                    name = info.filename.removesuffix(".npy")
                    table[name] = read_npy(stream, info.file_size, where)
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read as npz: {brief(str(error))}") from error
    return tables.read(table, request, str(path))


DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What a zip file can come to; an unknown method is a RuntimeError."""
