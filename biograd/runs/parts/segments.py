"""Read growing data sets from the segments of a run, or from its finished file, in one way.

A finished file is read as a run of one segment: both hold the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from biograd.errors import RunFileError
from biograd.runs.layout import TRIALS, Array, counted_by, grows


@dataclasses.dataclass(frozen=True)
class Segment:
    """One file of rows; a finished file has no digest."""

    path: Path
    sha256: str | None = None
    size: int | None = None


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        RunFileError: it is not HDF5, is cut short, or is locked.
        FileNotFoundError: it is not there.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError:
        raise
    except OSError as error:
        text = str(error)
        if "truncated" in text:
            why = "is cut short; copy it again, or go back to the run's .parts folder"
        elif "signature not found" in text:
            why = "is not an HDF5 file, or is cut short" if path.stat().st_size else "is empty"
        elif "unable to lock" in text:
            why = "is locked by another program; close it, or set HDF5_USE_FILE_LOCKING=FALSE"
        else:
            why = f"cannot be read, it is damaged or cut short ({' '.join(text.split())})"
        raise RunFileError(f"{path}: {why}") from error


class Sources:
    """The files that hold a run's rows, in order.

    Args:
        segments: where they are; each is checked against its digest when first opened.
        file: a finished file that stays open, instead of segments.
    """

    def __init__(self, segments: Sequence[Segment] = (), file: h5py.File | None = None) -> None:
        """Keep where the rows are; nothing is opened yet."""
        self.segments = list(segments)
        self.file = file
        self._name = None if file is None else file.filename
        self._checked: set[Path] = set()

    def __iter__(self) -> Iterator[h5py.File]:
        """Yield every file, open for the time of its turn."""
        if self.file is not None:
            if not self.file:
                raise RunFileError(f"{self._name}: the run is closed; open it again")
            yield self.file
        for segment in self.segments:
            with self._open(segment) as file:
                yield file

    @contextlib.contextmanager
    def _open(self, segment: Segment) -> Iterator[h5py.File]:
        self.check(segment)
        with open_file(segment.path) as file:
            yield file

    def check(self, segment: Segment) -> None:
        """Compare a segment with its digest, once.

        Raises:
            RunFileError: it is not what was committed.
        """
        if segment.path in self._checked:
            return
        with open(segment.path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != segment.sha256:
            raise RunFileError(
                f"{segment.path}: is damaged (its digest differs from the one committed); restore"
                " it from a copy, or go back to an earlier checkpoint with `biograd resume`"
            )
        self._checked.add(segment.path)

    def columns(self, prefix: str) -> dict[str, Array]:
        """Return all columns of one table under ``prefix``, each from all files.

        A column that a file lacks is NaN for the rows of that file.
        """
        rows: list[dict[str, int]] = []
        found: dict[str, dict[int, Array]] = {}
        for number, file in enumerate(self):
            rows.append(table_rows(file))
            for name, item in growing(file, prefix):
                found.setdefault(name, {})[number] = item[()]
        return {
            name: _join(pieces, [counts.get(counted_by(name), 0) for counts in rows])
            for name, pieces in found.items()
        }

    def row(self, name: str, index: int) -> Array | None:
        """Return one row of a column from the only file that has it, None if no file has."""
        for file in self:
            count = table_rows(file).get(counted_by(name), 0)
            if index < count:
                return file[name][index] if name in file else None
            index -= count
        return None

    def ragged(self, group: str) -> dict[str, Array]:
        """Return the SONATA group of one layer with ``trial_ptr`` over all files."""
        found: dict[str, list[Array]] = {}
        pointer = [np.zeros(1, np.uint64)]
        for file in self:
            if group not in file:
                continue
            for name in ("timestamps", "node_ids", "trial_ids"):
                found.setdefault(name, []).append(file[f"{group}/{name}"][()])
            pointer.append(file[f"{group}/trial_ptr"][1:] + pointer[-1][-1])
        values = {name: np.concatenate(pieces) for name, pieces in found.items()}
        return {**values, "trial_ptr": np.concatenate(pointer)} if values else {}


def _join(pieces: dict[int, Array], rows: list[int]) -> Array:
    sample = next(iter(pieces.values()))
    parts = [
        pieces[number]
        if number in pieces
        else np.full((count, *sample.shape[1:]), np.nan, sample.dtype)
        for number, count in enumerate(rows)
        if count or number in pieces
    ]
    return np.concatenate(parts)


def growing(file: h5py.File, prefix: str = "") -> list[tuple[str, h5py.Dataset]]:
    """Return the growing data sets of a file under ``prefix``, with their full names."""
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: h5py.HLObject) -> None:
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(item, h5py.Dataset) and grows(path):
            found.append((path, item))

    if not prefix:
        file.visititems(visit)
    elif prefix in file:
        file[prefix].visititems(visit)
    return found


def table_rows(file: h5py.File) -> dict[str, int]:
    """Return the number of rows of each table of a file, by the data set that counts them."""
    streams = [f"scalars/{stream}/step" for stream in file.get("scalars", {})]
    counters = [*streams, "snapshots/step", TRIALS]
    return {name: len(file[name]) for name in counters if name in file}
