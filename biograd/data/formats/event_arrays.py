"""Events as arrays of NumPy: columns of an ``.npy``, names of an ``.npz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from biograd.data.files.unpacking import open_npy, read_npz
from biograd.data.formats.address_events import AddressEvents, camera
from biograd.errors import DataError

COLUMNS = ("x", "y", "p", "t")


def read(path: Path) -> AddressEvents:
    """Return the events of a file.

    ``.npy``: ``[n, 4]``, columns x, y, polarity and time in **milliseconds**, as tonic stores
    DVS128 Gesture, or an array of records with the fields x, y, p, t; ``.npz``: arrays ``t, x, y,
    p``, as SpikingJelly writes them.  Records and ``.npz`` have times in microseconds.

    Raises:
        DataError: it holds something else, or values that are not whole and finite.
    """
    if path.suffix == ".npz":
        return _camera(read_npz(path), path)
    table = open_npy(path)
    if table.dtype.names:
        return of_records(table, path)
    if table.ndim != 2 or table.shape[1] != len(COLUMNS) or table.dtype.kind not in "iuf":
        raise DataError(f"{path}: {list(table.shape)} of {table.dtype}: must be [events, 4]")
    columns = dict(zip(COLUMNS, table.T.astype(np.float64), strict=True))
    return _camera({**columns, "t": np.round(columns["t"] * 1000)}, path)


def of_records(table: np.ndarray, where: object) -> AddressEvents:
    """Return the events of an array of records, as tonic gives them; times are microseconds.

    Fields: ``t``, ``p`` and ``x``, of a camera ``y`` too.

    Raises:
        DataError: other fields.
    """
    names = set(table.dtype.names or ())
    if names == {"t", "x", "p"} or names == {"t", "x"}:
        columns = _whole({name: table[name] for name in ("t", "x")}, where)
        return AddressEvents(columns["t"], columns["x"][:, None])
    return _camera({name: table[name] for name in names}, where)


def _camera(table: dict[str, Any], where: object) -> AddressEvents:
    if set(table) != set(COLUMNS):
        found = ", ".join(sorted(table))
        raise DataError(f"{where}: events have {found or 'no arrays'}: must be t, x, y, p")
    columns = _whole(table, where)
    return camera(columns["t"], columns["x"], columns["y"], columns["p"] > 0)


def _whole(table: dict[str, Any], where: object) -> dict[str, np.ndarray]:
    """Return columns as whole numbers."""
    if len({np.shape(column) for column in table.values()}) > 1:
        sizes = ", ".join(f"{name} {list(np.shape(c))}" for name, c in table.items())
        raise DataError(f"{where}: events differ in number: {sizes}")
    found = {}
    for name, column in table.items():
        values = np.asarray(column)
        if values.ndim != 1 or values.dtype.kind not in "iufb":
            raise DataError(f"{where}: {name}: is {list(values.shape)} of {values.dtype}")
        real = values.astype(np.float64)
        if not (
            np.isfinite(real).all() and (np.abs(real) < 2.0**62).all() and (real % 1 == 0).all()
        ):
            raise DataError(f"{where}: {name}: a value is not a whole number")
        found[name] = values.astype(np.int64)
    return found
