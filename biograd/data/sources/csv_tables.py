"""Tables as text (``.csv``, ``.tsv``): a row an example, or many rows a trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from biograd.checking import Checked
from biograd.data.digests import of_files
from biograd.data.files.csv_files import numbers, read_csv
from biograd.data.files.own_paths import paths_of
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows import tables
from biograd.errors import DataError, RecipeError, nearest


@dataclasses.dataclass(frozen=True)
class TableSettings(Checked):
    """Which columns are what; all others are inputs.

    Attributes:
        target: column, or columns, of what is asked for; words are classes in their order.
        group, split, weight: columns of what stays together, of the split, of the weight in the
            loss; "": none.
        trial: column that numbers trials: rows of one value are the steps of a trial, in their
            order; "": each row is an example.
        ignore: columns that are left out.
    """

    target: tuple[str, ...] = ()
    group: str = ""
    split: str = ""
    weight: str = ""
    trial: str = ""
    ignore: tuple[str, ...] = ()


@with_settings(TableSettings)
def read(request: Request, settings: TableSettings) -> Parts:
    """Return the sources of a table, or of one for each split.

    Inputs ``[N, columns]``; with ``trial`` ``[N, T, columns]``, shorter trials ended.  Targets are
    those of the row; of a trial those of every step, or of the trial if all its steps have one
    value of a single column.

    Raises:
        RecipeError: ``target`` is missing.
        DataError: no such column, or a value that is no number, with its row.
    """
    if not settings.target:
        raise RecipeError(
            f"dataset {request.name}: settings.target: name the column of what is asked for, "
            '["choice"], and by trial the column whose equal values are the steps of a trial'
        )
    paths = paths_of(request)
    read_in = {split: read_csv(path) for split, path in paths.items()}
    words = _words(read_in, settings)
    found = {
        split: _one(paths[split], table, request, settings, words)
        for split, table in read_in.items()
    }
    return tables.joined(found, request.name)


def _words(read_in: dict[str, dict[str, np.ndarray]], settings: TableSettings) -> list[str]:
    """Return the words of a target of words, over all files, in their order."""
    columns = [t[settings.target[0]] for t in read_in.values() if settings.target[0] in t]
    if len(settings.target) > 1 or not any(column.dtype.kind == "U" for column in columns):
        return []
    return sorted({str(word) for column in columns for word in column})


def _one(
    path: Path,
    table: dict[str, np.ndarray],
    request: Request,
    settings: TableSettings,
    words: list[str],
) -> Parts:
    roles = {
        name for name in (settings.group, settings.split, settings.weight, settings.trial) if name
    }
    named = [*settings.target, *roles, *settings.ignore]
    for name in named:
        if name not in table:
            raise DataError(f"{path}: no column {name!r}: {nearest(name, table)}")
    inputs = [name for name in table if name not in named]
    if not inputs:
        raise DataError(f"{path}: no column is left for the inputs")
    found: dict[str, Any] = {
        "x": numbers(table, inputs, path),
        "y": _targets(path, table, settings, words),
    }
    for role in ("group", "split", "weight"):
        if name := getattr(settings, role):
            found[role] = table[name]
    if settings.trial:
        found = _trials(table[settings.trial], found, path, request)
    about = tables.About(classes=len(words))
    return tables.read(found, request, str(path), about, of_files([path]))


def _targets(
    path: Path, table: dict[str, np.ndarray], settings: TableSettings, words: list[str]
) -> np.ndarray:
    if words:
        column = table[settings.target[0]].astype(str)
        return np.searchsorted(np.array(words), column)
    found = numbers(table, list(settings.target), path)
    found = found[:, 0] if len(settings.target) == 1 else found
    whole = len(settings.target) == 1 and bool((found % 1 == 0).all())
    return found.astype(np.int64) if whole else found


def _trials(
    trial: np.ndarray, found: dict[str, np.ndarray], path: Path, request: Request
) -> dict[str, Any]:
    """Return rows as trials, padded, with their lengths."""
    if not request.timed:
        raise RecipeError(
            f"dataset {request.name}: settings.trial: makes a time axis: set dataset.timed=true, "
            "or encoding.kind = 'given'"
        )
    _, first, inverse = np.unique(trial, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they come in the file
    rows = [np.flatnonzero(inverse == number) for number in order]
    lengths = np.array([len(each) for each in rows])
    cells = int(lengths.max()) * len(rows)
    if cells > 100 * len(trial) + 10**6:
        raise DataError(
            f"{path}: {len(rows)} trials of up to {lengths.max()} steps: too uneven to pad"
        )
    steps = int(lengths.max())
    padded: dict[str, Any] = {"lengths": lengths}
    for role, values in found.items():
        constant = all((values[each] == values[each[0]]).all() for each in rows)
        if role != "x" and constant and values.ndim == 1:
            padded[role] = np.array([values[each[0]] for each in rows])
        elif role in ("x", "y"):
            whole = np.zeros((len(rows), steps, *values.shape[1:]), values.dtype)
            for place, each in enumerate(rows):
                whole[place, : len(each)] = values[each]
            padded[role] = whole
        else:
            raise DataError(f"{path}: {role}: differs within a trial")
    return padded
