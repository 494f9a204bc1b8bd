"""Tables as text: a line of names, then numbers or words."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from biograd.data.files.unpacking import check_memory
from biograd.errors import DataError, brief

ENDINGS = {".csv": ",", ".tsv": "\t"}
LONGEST_FIELD = 10_000


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a ``.csv`` or ``.tsv`` by name: of float64, or of text.

    Raises:
        DataError: no names, a name twice, a line of another length, or an empty or unreadable file.
    """
    try:
        check_memory(20 * path.stat().st_size, path)
        text = path.read_text(encoding="utf-8-sig")
        csv.field_size_limit(LONGEST_FIELD)
        rows = list(csv.reader(text.splitlines(), delimiter=ENDINGS[path.suffix.lower()]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {brief(str(error))}") from error
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise DataError(f"{path}: must have a line of names and at least one of values")
    names = [cell.strip() for cell in rows[0]]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}: line 1: a column without a name, or two of one name")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number}: {len(row)} values for {len(names)} columns")
    columns = zip(*rows[1:], strict=True)
    return {name: _column(cells) for name, cells in zip(names, columns, strict=True)}


def _column(cells: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array([cell.strip() for cell in cells])


def numbers(table: dict[str, np.ndarray], names: list[str], path: Path) -> np.ndarray:
    """Return columns side by side as float32 ``[rows, columns]``.

    Raises:
        DataError: a value is no number, or not finite.
    """
    for name in names:
        column = table[name]
        if column.dtype.kind != "f":
            wrong = next(n for n, cell in enumerate(column) if not _number(str(cell)))
            raise DataError(
                f"{path}: row {wrong + 2}: {name} = {brief(str(column[wrong]))!r}: is no number"
            )
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise DataError(f"{path}: row {row + 2}: {name}: is not finite")
    return np.stack([table[name] for name in names], 1).astype(np.float32)


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
