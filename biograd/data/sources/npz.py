"""NumPy's ``.npz``: arrays by name, without pickles."""

from __future__ import annotations

from biograd.data.files.own_paths import paths_of
from biograd.data.files.unpacking import read_npz
from biograd.data.request import Parts, Request
from biograd.data.rows import tables


def read(request: Request) -> Parts:
    """Return the sources of one file, or of a file for each split.

    Raises:
        DataError: not ``.npz``, an array of objects, or not what ``rows.tables`` asks for.
    """
    found = {
        split: tables.read(read_npz(path), request, str(path))
        for split, path in paths_of(request).items()
    }
    return tables.joined(found, request.name)
