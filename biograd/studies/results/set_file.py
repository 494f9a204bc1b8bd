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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from biograd.errors import RunFileError
from biograd.runs import storage
from biograd.runs.layout import SET
from biograd.runs.reader import Run, open_run
from biograd.studies import Row, flattened

VERSION = "1.0"


@dataclasses.dataclass(frozen=True)
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

    def open(self, cell: str, seed: int) -> Run:
        """Open a run.

        Raises:
            RunFileError: the set has no such run, or its file is missing or damaged.
        """
        if (cell, seed) not in self.runs:
            known = ", ".join(sorted({name for name, _ in self.runs}))
            raise RunFileError(f"{self.path}: no run of {cell!r} with seed {seed} (cells: {known})")
        return open_run(self.runs[cell, seed])


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
    temporary = path.with_name(path.name + ".tmp")
    with storage.writing(path, "run the study again"):
        with h5py.File(temporary, "w") as file:
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
        os.replace(temporary, path)
        storage.sync_folder(path.parent)


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
        with h5py.File(where, "r") as file:
            return bool(file.attrs.get("format") == SET)
    except OSError:
        return False


def load_set(path: str | os.PathLike[str]) -> RunSet:
    """Open a set of runs, given ``set.h5`` or the folder that it lies in.

    Raises:
        RunFileError: there is none, or it is damaged or from a newer version.
    """
    where = Path(path)
    where = where / "set.h5" if where.is_dir() else where
    try:
        with h5py.File(where, "r") as file:
            if file.attrs.get("format") != SET:
                raise RunFileError(f"{where}: not a set of runs (biograd.load opens a single run)")
            version = str(file.attrs["format_version"])
            if version.partition(".")[0] != VERSION.partition(".")[0]:
                raise RunFileError(
                    f"{where}: its format is {version}, this biograd reads {VERSION}: update it"
                )
            return RunSet(
                where,
                json.loads(file.attrs["configuration"]),
                dict(_links(file["runs"], where.parent)),
                {
                    name: {column: _values(data) for column, data in table.items()}
                    for name, table in file["tables"].items()
                },
            )
    except (OSError, KeyError, ValueError) as error:
        if not where.exists():
            raise RunFileError(f"{where}: there is no such set of runs") from error
        raise RunFileError(f"{where}: cannot be read as a set of runs ({error})") from error


def _links(group: Any, folder: Path) -> Any:
    for cell in group.values():
        for name in cell:
            link = cell.get(name, getlink=True)
            yield (
                (str(cell.attrs["cell"]), int(name.removeprefix("seed"))),
                folder / link.filename,
            )


def _values(data: Any) -> NDArray[Any]:
    return data.asstr()[...] if h5py.check_string_dtype(data.dtype) else data[...]
