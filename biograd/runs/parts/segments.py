"""Read growing data sets from the segments of a run, or from its finished file, in one way.

A finished file is read as a run of one segment: both hold the same names.
"""

from __future__ import annotations

import contextlib
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
from biograd.runs.layout import Array
from biograd.runs.schema.run_tables import GROWING, STEPS, TRIALS, counted_by, grows, kinds_of


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
        self._rows: dict[int, dict[str, int]] = {}
        self._spikes: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.segments) if self.file is None else 1

    def __iter__(self) -> Iterator[CheckedFile]:
        """Yield every file, open for the time of its turn."""
        for number in range(len(self)):
            with self._opened(number) as file:
                yield file

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[CheckedFile]:
        if self.file is not None:
            yield self.file
            return
        self.check(self.segments[number])
        with open_file(self.segments[number].path) as file:
            yield file

    def _counts(self, number: int) -> dict[str, int]:
        """Return the rows of each table of a file, which never changes."""
        if number not in self._rows:
            with self._opened(number) as file:
                self._rows[number] = table_rows(file)
        return self._rows[number]

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

    def length(self, name: str) -> int:
        """Return the number of rows of a column over all files, whether it is there or not."""
        return sum(self._counts(number).get(counted_by(name), 0) for number in range(len(self)))

    def holds(self, name: str) -> bool:
        """Return whether some file has a column."""
        return any(file.holds(name) for file in self)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows of a column from the files that have them; NaN where a file lacks it."""
        shape = self._shape(name) or ()
        pieces = [np.zeros((0, *shape), np.float32)]
        for number, low, high in self._parts(name, start, stop):
            with self._opened(number) as file:
                if file.holds(name):
                    self.column(file, name, self._counts(number))
                    pieces.append(file.rows(name, low, high))
                else:
                    pieces.append(np.full((high - low, *shape), np.nan, np.float32))
        return np.concatenate(pieces[1:] or pieces)

    def _parts(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the files that hold some of the rows, and which of their own."""
        counts = [self._counts(number).get(counted_by(name), 0) for number in range(len(self))]
        return _overlaps(counts, start, stop)

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

    def pointer(self, group: str) -> Array | None:
        """Return ``trial_ptr`` of a layer's SONATA group over all files; None: no file has it.

        Raises:
            RunFileError: the group does not hold so many spikes.
        """
        pieces, counts, total = [np.zeros(1, np.uint64)], [], np.uint64(0)
        for file in self:
            trials = table_rows(file).get(TRIALS, 0)
            own = _group_pointer(file, group, trials) if file.holds(group) else None
            counts.append(-1 if own is None else int(own[-1]))
            added = np.zeros(trials, np.uint64) if own is None else own[1:]
            pieces.append(added + total)
            total += np.uint64(max(counts[-1], 0))
        self._spikes[group] = [max(count, 0) for count in counts]
        return np.concatenate(pieces) if max(counts, default=-1) >= 0 else None

    def spikes(self, name: str, start: int, stop: int) -> Array:
        """Return a column's values from one spike to another; its group's pointer was read."""
        group, _, column = name.rpartition("/")
        if group not in self._spikes:
            self.pointer(group)
        pieces = [np.zeros(0, {"timestamps": np.float64}.get(column, np.uint64))]
        for number, low, high in _overlaps(self._spikes[group], start, stop):
            with self._opened(number) as file:
                file.dataset(name, kinds_of(name), 1)
                pieces.append(file.rows(name, low, high))
        return np.concatenate(pieces[1:] or pieces)


def _overlaps(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number and own rows of the files that hold rows ``start`` to ``stop`` of all."""
    first = 0
    for number, count in enumerate(counts):
        low, high = max(start - first, 0), min(stop - first, count)
        if low < high:
            yield number, low, high
        first += count


def _group_pointer(file: CheckedFile, group: str, trials: int) -> Array:
    """Return where the spikes of the trials begin in one file; see :meth:`Sources.pointer`."""
    own = pointers(file, group)
    if len(own) != trials + 1:
        raise file.damaged(f"{group}/trial_ptr", "it does not count the trials")
    for name in ("timestamps", "node_ids", "trial_ids"):
        kinds = kinds_of(f"{group}/{name}")
        if file.dataset(f"{group}/{name}", kinds, 1).shape != (int(own[-1]),):
            raise file.damaged(f"{group}/{name}", "it has not the length of the others")
    return own


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
