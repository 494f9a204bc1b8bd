"""Read growing data sets from the segments of a run, or from its finished file, in one way.

A finished file is read as a run of one segment: both hold the same names.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from biograd import disk
from biograd.errors import RunFileError
from biograd.runs.checked import CheckedFile, open_file
from biograd.runs.layout import GROWING, STEPS, TRIALS, Array, counted_by, grows, kinds_of


@dataclasses.dataclass(frozen=True)
class Segment:
    """One file of rows, and what was committed of it."""

    path: Path
    sha256: str
    size: int


class Sources:
    """The files that hold a run's rows, in order.

    Args:
        shape: of a row of a data set by its name; None: there is none of this name.
        segments: where they are; each is checked against its digest when first opened.
        file: a finished file that stays open, instead of segments.
    """

    def __init__(
        self,
        shape: Callable[[str], tuple[int, ...] | None],
        segments: Sequence[Segment] = (),
        file: CheckedFile | None = None,
    ) -> None:
        """Keep where the rows are; nothing is opened yet."""
        self._shape, self.segments, self.file = shape, list(segments), file
        self._checked: set[Path] = set()

    def __iter__(self) -> Iterator[CheckedFile]:
        """Yield every file, open for the time of its turn."""
        if self.file is not None:
            yield self.file
        for segment in self.segments:
            self.check(segment)
            with open_file(segment.path) as file:
                yield file

    def check(self, segment: Segment) -> None:
        """Compare a segment with its digest, once.

        Raises:
            RunFileError: it is not what was committed.
        """
        if segment.path not in self._checked:
            if not whole(segment):
                raise RunFileError(
                    f"{segment.path}: is damaged (its digest differs from the one committed);"
                    " restore it from a copy, or go back to an earlier checkpoint with"
                    " `biograd resume`"
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
            names = growing(file, prefix)
            for name in names:  # before any is read
                self.column(file, name, rows[-1])
            for name in names:
                found.setdefault(name, {})[number] = file.array(name)
        return {
            name: _join(pieces, [counts.get(counted_by(name), 0) for counts in rows])
            for name, pieces in found.items()
        }

    def row(self, name: str, index: int) -> Array | None:
        """Return one row of a column from the only file that has it, None if no file has."""
        for file in self:
            counts = table_rows(file)
            count = counts.get(counted_by(name), 0)
            if index < count:
                return self.column(file, name, counts)[index] if file.holds(name) else None
            index -= count
        return None

    def column(self, file: CheckedFile, name: str, rows: Mapping[str, int]) -> h5py.Dataset:
        """Return a growing data set, which must have the rows of its table.

        Raises:
            RunFileError: it has not, or holds other values than such a column does.
        """
        item, shape = file.dataset(name, kinds_of(name)), self._shape(name)
        if name.endswith("/trial_ptr"):
            pointers(file, name.rpartition("/")[0])
        elif not item.ndim or item.shape[1:] != shape:
            raise file.damaged(name, f"it has the shape {item.shape}, its rows have {shape}")
        elif not name.startswith("spikes/") and len(item) != rows.get(counted_by(name)):
            raise file.damaged(name, f"it has {len(item)} rows, not those of its table")
        return item

    def ragged(self, group: str) -> dict[str, Array]:
        """Return the SONATA group of one layer with ``trial_ptr`` over all files."""
        found: dict[str, list[Array]] = {}
        pointer = [np.zeros(1, np.uint64)]
        for file in self:
            if not file.holds(group):
                continue
            trials = table_rows(file).get(TRIALS, 0)
            if file.dataset(f"{group}/trial_ptr", "iu", 1).shape != (trials + 1,):
                raise file.damaged(f"{group}/trial_ptr", "it does not count the trials")
            own = pointers(file, group)
            for name in ("timestamps", "node_ids", "trial_ids"):
                kinds = kinds_of(f"{group}/{name}")
                if file.dataset(f"{group}/{name}", kinds, 1).shape != (int(own[-1]),):
                    raise file.damaged(f"{group}/{name}", "it has not the length of the others")
                part = file.array(f"{group}/{name}", kinds, 1)
                found.setdefault(name, []).append(part)
            pointer.append(own[1:] + pointer[-1][-1])
        values = {name: np.concatenate(pieces) for name, pieces in found.items()}
        return {**values, "trial_ptr": np.concatenate(pointer)} if values else {}


def whole(segment: Segment) -> bool:
    """Return whether a segment is what was committed.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not segment.path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(segment.path))
    if segment.size != segment.path.stat().st_size:
        return False
    return disk.sha256(segment.path) == segment.sha256


def pointers(file: CheckedFile, group: str) -> Array:
    """Return where the spikes of each trial begin in one file, from 0 on, uint64 ``[trial + 1]``.

    Raises:
        RunFileError: they do not begin at 0, or do not increase.
    """
    found = file.array(f"{group}/trial_ptr", "iu", 1).astype(np.uint64)
    if not len(found) or found[0] or (found[1:] < found[:-1]).any():
        raise file.damaged(f"{group}/trial_ptr", "it does not count spikes")
    return found


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


def growing(file: CheckedFile, prefix: str = "") -> list[str]:
    """Return the full names of the growing data sets of a file under ``prefix``."""
    prefixes = [prefix] if prefix else GROWING
    return [name for one in prefixes for name in file.datasets(one) if grows(name)]


def table_rows(file: CheckedFile) -> dict[str, int]:
    """Return the number of rows of each table of a file, by the data set that counts them."""
    streams = [f"scalars/{stream}/step" for stream in file.members("scalars")]
    counters = [*streams, STEPS, TRIALS]
    return {
        name: len(file.dataset(name, kinds_of(name), 1)) for name in counters if file.holds(name)
    }
