"""A set of runs as one HDF5 file: links to the runs, and the tables that compare them.

::

    set.h5
      attrs       format "biograd-set", format_version, configuration (JSON)
      runs/CELL/seed0 -> CELL-seed0.h5      external links, relative: the folder may move
      tables/NAME/COLUMN                    one value a row; text as UTF-8, what is missing as NaN

A link opens as if the run lay inside: ``h5py.File("set.h5")["runs/ann · weak/seed0/scalars"]``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from biograd import disk
from biograd.disk.hdf5_streams import create
from biograd.display.csv_text import flattened
from biograd.errors import RunFileError, visible
from biograd.runs.checked import CheckedFile, open_file
from biograd.runs.json_text import parse_object
from biograd.runs.layout import SET
from biograd.runs.reader import Run, open_run
from biograd.studies import Row

VERSION = "1.0"
SHOWN = ("cell", "n", "test", "lowest", "highest", "train", "difference")
"""Columns of the results that a set prints."""


@dataclasses.dataclass(frozen=True, repr=False)
class RunSet:
    """What a set file holds; ``biograd.load_set`` returns it.

    Attributes:
        path: of the file.
        configuration: the study's settings.
        runs: cell and seed to the path of the run.
        tables: name to columns, one value a row; "results" has a row for each cell.
    """

    path: Path
    configuration: dict[str, Any]
    runs: dict[tuple[str, int], Path]
    tables: dict[str, dict[str, NDArray[Any]]]

    def __repr__(self) -> str:
        """Return a table: of each cell its runs, and mean and range of the test figure."""
        results = self.tables.get("results", {})
        columns = {name: results[name] for name in SHOWN if name in results}
        rows = [tuple(columns), *zip(*columns.values(), strict=False)]
        texts = [[_written(value) for value in row] for row in rows if len(rows) > 1]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in texts]
        return "\n".join((f"RunSet of {len(self.runs)} runs", *lines))

    def open(self, cell: str, seed: int) -> Run:
        """Open a run.

        Raises:
            RunFileError: the set has no such run, or its file is missing or damaged.
        """
        if (cell, seed) not in self.runs:
            known = ", ".join(sorted({name for name, _ in self.runs}))
            raise RunFileError(f"{self.path}: no run of {cell!r} with seed {seed} (cells: {known})")
        return open_run(self.runs[cell, seed])


def _written(value: Any) -> str:
    """Return a value of a table as text; what is missing as none."""
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.2f}"
    return visible(str(value))


def write(
    path: Path,
    configuration: Mapping[str, Any],
    runs: Mapping[tuple[str, int], str],
    tables: Mapping[str, Sequence[Row]],
) -> None:
    """Write a set file, which appears only when it is complete.

    Args:
        runs: cell and seed to the name of the run file in the same folder.
    """
    with disk.writing(path, "run the study again"), create(path) as file:
        file.attrs.update(format=SET, format_version=VERSION)
        file.attrs["configuration"] = json.dumps(configuration, ensure_ascii=False)
        links = file.create_group("runs", track_order=True)
        for (cell, seed), name in runs.items():
            # a slash would make a group of its own
            group = links.require_group(cell.replace("/", "∕"))
            group.attrs["cell"] = cell
            group[f"seed{seed}"] = h5py.ExternalLink(name, "/")
        for name, given in tables.items():
            rows = [flattened(row) for row in given]
            table = file.create_group(f"tables/{name}", track_order=True)
            for column in dict.fromkeys(key for row in rows for key in row):
                table[column] = _column([row.get(column) for row in rows])


def _column(values: Sequence[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        text = ["" if value is None else str(value) for value in values]
        return np.array(text, dtype=h5py.string_dtype())
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    missing = float("nan")
    return np.array([missing if value is None else float(value) for value in values])


def is_set(path: Path) -> bool:
    """Return whether a path is a set of runs, or a folder with one."""
    where = path / "set.h5" if path.is_dir() else path
    try:
        with open_file(where) as file:
            return bool(file.attributes("").get("format") == SET)
    except (OSError, RunFileError):
        return False


def load_set(path: str | os.PathLike[str]) -> RunSet:
    """Open a set of runs, given ``set.h5`` or the folder that it lies in.

    Raises:
        RunFileError: there is none, it is damaged or from a newer version, or it links a file
            outside of its folder.
    """
    where = Path(path)
    where = where / "set.h5" if where.is_dir() else where
    try:
        with open_file(where) as file:
            return _contents(file, where)
    except OSError as error:
        raise RunFileError(f"{where}: there is no such set of runs") from error


def _contents(file: CheckedFile, where: Path) -> RunSet:
    attributes = file.attributes("")
    if attributes.get("format") != SET:
        raise RunFileError(f"{where}: not a set of runs (biograd.load opens a single run)")
    version = str(attributes.get("format_version"))
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise RunFileError(
            f"{where}: its format is {version}, this biograd reads {VERSION}: update it"
        )
    configuration = parse_object(str(attributes.get("configuration")), where)
    tables = {name: _table(file, f"tables/{name}") for name in file.members("tables")}
    return RunSet(where, configuration, dict(_links(file, where.parent)), tables)


def _table(file: CheckedFile, name: str) -> dict[str, NDArray[Any]]:
    found = {
        column: file.array(f"{name}/{column}", "iufO", 1)
        for column in file.members(name, ordered=True)
    }
    if len({len(values) for values in found.values()}) > 1:
        raise file.damaged(name, "its columns differ in length")
    return found


def _links(file: CheckedFile, folder: Path) -> Iterator[tuple[tuple[str, int], Path]]:
    """Yield cell, seed and path of the runs that a set links: files beside it, and no others."""
    for group in file.members("runs", ordered=True):
        where = f"runs/{group}"
        cell = file.attributes(where).get("cell")
        for name, link in file.links(where).items():
            seed = name.removeprefix("seed")
            if not isinstance(cell, str) or not re.fullmatch(r"-?[0-9]{1,19}", seed):
                raise file.damaged(where, "cell or seed is missing")
            plain = isinstance(link, h5py.ExternalLink) and link.filename
            if not plain or Path(plain).name != plain or plain == "..":
                raise file.damaged(f"{where}/{name}", "it links no file of the folder of the set")
            yield (cell, int(seed)), folder / plain
