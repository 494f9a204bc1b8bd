"""Tables as text: a line of names, then numbers or words."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from biograd import disk
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
        text = disk.read_bytes(path, 2**40).decode("utf-8-sig")
        if "\0" in text:
            raise DataError(f"{path}: is no text: it holds NUL characters")
        csv.field_size_limit(LONGEST_FIELD)
        lines = io.StringIO(text, newline="")  # a line that ends within quotes goes on
        rows = list(csv.reader(lines, delimiter=ENDINGS[path.suffix.lower()], strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {brief(str(error))}") from error
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise DataError(f"{path}: must have a line of names and at least one of values")
    names = [cell.strip() for cell in rows[0]]
    if len(names) == 1 and ";" in names[0]:
        raise DataError(
            f"{path}: line 1: its columns are divided by ';': divide them by ',', and write numbers"
            " with a point"
        )
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}: line 1: a column without a name, or two of one name")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number}: {len(row)} values for {len(names)} columns")
    columns = zip(*rows[1:], strict=True)
    return {name: _column(cells) for name, cells in zip(names, columns, strict=True)}


def _column(cells: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([_real(cell) for cell in cells])
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
        beyond = ~(np.abs(column) <= np.finfo(np.float32).max)
        if beyond.any():
            row = int(np.flatnonzero(beyond)[0])
            what = "is beyond float32" if np.isfinite(column[row]) else "is not finite"
            raise DataError(f"{path}: row {row + 2}: {name}: {what}")
    return np.stack([table[name] for name in names], 1).astype(np.float32)


def _real(cell: str) -> float:
    """Return the number that a cell is; not what Python alone writes so, as ``1_000``.

    Raises:
        ValueError: it is none.
    """
    if "_" in cell or not cell.isascii():
        raise ValueError(cell)
    return float(cell)


def _number(cell: str) -> bool:
    try:
        _real(cell)
    except ValueError:
        return False
    return True
