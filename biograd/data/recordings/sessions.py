"""Pieces of one long recording: trials of a table, with a class or a course as targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biograd.data.recordings.labelled import LabelledFile
from biograd.errors import DataError

SPLIT_WORDS = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test",
}  # fmt: skip
"""What the splits are called in tables; rows of another word are left out."""


@dataclasses.dataclass(frozen=True)
class TrialTable:
    """Trials of a recording.

    Attributes:
        columns: by name, ``[trials]`` each.
        where: names the table in messages.
    """

    columns: Mapping[str, np.ndarray]
    where: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, float64.

        Raises:
            DataError: there is none of that name, or it holds no numbers.
        """
        found = self.column(name)
        try:
            return found.astype(np.float64)
        except ValueError as error:
            raise DataError(f"{self.where}: {name}: {error}") from error

    def column(self, name: str) -> np.ndarray:
        """Return a column.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.where}: no column {name!r}: there are {', '.join(self.columns)}"
            )
        return self.columns[name]

    def classes(self, name: str) -> tuple[np.ndarray, int]:
        """Return a column as numbers of classes, in the order of their values, and how many.

        Raises:
            DataError: there is no such column, or it holds numbers that are not whole.
        """
        column = self.column(name)
        if column.dtype.kind == "f" and not (column % 1 == 0).all():
            raise DataError(f"{self.where}: {name}: a value is not whole: it names no class")
        values, found = np.unique(column, return_inverse=True)
        return found.reshape(-1), len(values)

    def splits(self) -> list[str]:
        """Return the split of each trial, "" of all without a column ``split``; "-": left out."""
        if "split" not in self.columns:
            return [""] * len(self)
        return [SPLIT_WORDS.get(str(word), "-") for word in self.columns["split"]]


def pieces(
    path: Path,
    table: TrialTable,
    start_us: np.ndarray,
    end_us: np.ndarray,
    labels: np.ndarray,
    group: str,
) -> tuple[list[LabelledFile], np.ndarray, tuple[str, ...]]:
    """Return the trials as pieces of a file, their numbers in the table, and what is to be said.

    Trials without a start (NaN), before the time 0, or of no split are left out.

    Raises:
        DataError: none is left, or a trial ends before it starts.
    """
    splits = table.splits()
    groups = table.column(group).astype(str) if group else np.full(len(table), "")
    timed = np.isfinite(start_us) & np.isfinite(end_us) & (start_us >= 0) & (end_us < 2.0**62)
    kept = np.flatnonzero(timed & np.array([split != "-" for split in splits], bool))
    if not len(kept):
        raise DataError(f"{table.where}: no trial with a time and a split")
    if (end_us[kept] <= start_us[kept]).any():
        raise DataError(f"{table.where}: a trial ends before it starts")
    found = [
        LabelledFile(path, int(labels[row]), splits[row], str(groups[row]),
                     round(start_us[row]), round(end_us[row]))
        for row in kept
    ]  # fmt: skip
    lost = len(table) - len(kept)
    notes = (
        (f"{table.where}: {lost} trials without a time or a split are left out",) if lost else ()
    )
    return found, kept, notes


def courses(
    times: np.ndarray, values: np.ndarray, starts: np.ndarray, steps: int, dt: float
) -> Tensor:
    """Return a course in the middle of each step of each trial, ``[trials, steps, k]``, linear.

    NaN where the samples beside are further apart than ten times their median distance, or missing:
    between trials there are none.

    Args:
        times: of the samples ``[n]``, in the unit of ``starts`` and ``dt``.
        values: ``[n, k]``.
    """
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    asked = starts[:, None] + (np.arange(steps) + 0.5) * dt
    after = np.clip(np.searchsorted(times, asked), 1, len(times) - 1)
    left, right = times[after - 1], times[after]
    gap = 10 * float(np.median(np.diff(times)))
    share = np.where(right > left, (asked - left) / np.where(right > left, right - left, 1), 0.0)
    found = values[after - 1] + share[..., None] * (values[after] - values[after - 1])
    lost = (right - left > gap) | (asked < left) | (asked > right)
    found[lost] = np.nan
    return torch.from_numpy(found).float()
