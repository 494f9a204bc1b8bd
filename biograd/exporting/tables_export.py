"""A run as tables and arrays that need no HDF5 tools: CSV, NetCDF, TensorBoard."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from biograd import disk
from biograd.display.csv_text import spreadsheet_cell
from biograd.errors import RecipeError
from biograd.runs.reader import Run
from biograd.runs.views.converters import library

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def export_csv(run: Run, folder: Path, *, force: bool = False) -> Path:
    """Write a folder of CSV files: streams of scalars, trials, spikes, activity, confusion.

    Names of columns are those of the run; what a spreadsheet would take for a formula has an
    apostrophe before it, and what is not seen is escaped.

    Raises:
        RecipeError: the folder exists and ``force`` is not set.
        OutputError: a file cannot be written.
    """
    if folder.exists() and not (force and folder.is_dir()):
        raise RecipeError(f"{folder}: exists; choose another path or replace its files by --force")
    with disk.writing(folder, "export again"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, columns in _tables(run):
            disk.write_bytes(folder / f"{plain(name)}.csv", _csv(columns).encode())
    return folder


def plain(name: str) -> str:
    """Return a name as one of a file: what is not a plain letter becomes its number.

    >>> plain("spikes blocks.0"), plain("../x")
    ('spikes_blocks.0', '..%2fx')
    """
    signs = (c if c in PLAIN else "_" if c == " " else f"%{ord(c):02x}" for c in name)
    return "".join(signs)[:200]


def _csv(columns: Mapping[str, Iterable[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([spreadsheet_cell(name) for name in columns])
    lists = [np.asarray(column).tolist() for column in columns.values()]
    writer.writerows(
        [[spreadsheet_cell(value) for value in row] for row in zip(*lists, strict=True)]
    )
    return stream.getvalue()


def _tables(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for stream in run.streams:
        yield f"scalars {stream}", run.scalars(stream)
    if run.trials:
        yield "trials", {"trial": np.arange(len(run.trials["label"])), **run.trials}
    for name, layer in run.layers.items():
        if layer.kind == "spiking" and run.trials:
            raster = run.spikes(name).raster()
            yield f"spikes {name}", raster._asdict()
        yield from _activity(run, name)


def _activity(run: Run, layer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the activity of the last snapshot, one row a stimulus."""
    if f"layers/{layer}/activation" not in {entry.name for entry in run.tree()}:
        return
    activity = run.activity(layer)
    units = {f"unit {u}": c for u, c in zip(activity.coords["unit"], activity[-1].T, strict=True)}
    stimuli = {name: activity.coords[name] for name in ("probe", "label")}
    yield f"activity {layer}", {**stimuli, **units}


def export_netcdf(run: Run, path: Path, *, force: bool = False) -> Path:
    """Write scalars, measures and activity as NetCDF 4, a group for each.

    Raises:
        MissingExtraError: xarray is not installed.
        RecipeError: the file exists and ``force`` is not set.
        OutputError: the file cannot be written.
    """
    library("h5netcdf", "xarray")
    disk.check_target(path, force)
    tree = run.to_xarray()
    with (
        disk.writing(path, "export again"),
        tempfile.TemporaryDirectory(prefix=".biograd-", dir=path.parent) as place,
    ):
        tree.to_netcdf(Path(place, "run.nc"), engine="h5netcdf", mode="w")
        Path(place, "run.nc").replace(path)
    return path


def export_tensorboard(run: Run, folder: Path, *, force: bool = False) -> Path:
    """Write the streams of scalars as events of TensorBoard, tags ``stream/metric``.

    Raises:
        MissingExtraError: tensorboard is not installed.
        RecipeError: the folder exists and ``force`` is not set.
        OutputError: a file cannot be written.
    """
    library("tensorboard", "tensorboard")
    writers = library("torch.utils.tensorboard", "tensorboard")
    if folder.exists() and not (force and folder.is_dir()):
        raise RecipeError(f"{folder}: exists; choose another path or add to it by --force")
    with disk.writing(folder, "export again"), writers.SummaryWriter(str(folder)) as writer:
        for stream in run.streams:
            table = run.scalars(stream)
            for name in table.keys() - {"step", "epoch", "wall_time"}:
                for step, value, time in zip(
                    table["step"], table[name], table["wall_time"], strict=True
                ):
                    if not np.isnan(value):
                        writer.add_scalar(f"{stream}/{name}", float(value), int(step), float(time))
    return folder
