"""A run as tables and arrays that need no HDF5 tools: CSV, NetCDF, TensorBoard."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from biograd import disk
from biograd.disk.hdf5_streams import steady
from biograd.display.csv_text import spreadsheet_cell
from biograd.errors import visible
from biograd.runs.reader import Run
from biograd.runs.views.converters import library

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
LONGEST = 200
"""Letters of a file's name."""


def export_csv(run: Run, folder: Path, *, force: bool = False) -> Path:
    """Write a folder of CSV files: streams of scalars, trials, spikes, activity, confusion.

    Names of columns are those of the run; what a spreadsheet would take for a formula has an
    apostrophe before it, and what is not seen is escaped.

    Raises:
        RecipeError: the folder exists and ``force`` is not set.
        OutputError: a file cannot be written.
    """
    with disk.filling(folder, force=force) as place:
        for name, columns in _tables(run):
            with open(place / f"{plain(name)}.csv", "x", encoding="utf-8", newline="") as file:
                _write_csv(file, columns)
    return folder


def plain(name: str) -> str:
    """Return a name as one of a file: what is not a plain letter becomes its number.

    A long name ends with a digest of all of it: those that begin alike are still two.

    >>> plain("spikes blocks.0"), plain("../x")
    ('spikes_blocks.0', '..%2fx')
    """
    signs = (c if c in PLAIN else "_" if c == " " else f"%{ord(c):02x}" for c in name)
    found = "".join(signs)
    if len(found) <= LONGEST:
        return found
    return f"{found[: LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _write_csv(stream: TextIO, columns: Mapping[str, Iterable[Any]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([spreadsheet_cell(name) for name in columns])
    lists = [np.asarray(column).tolist() for column in columns.values()]
    writer.writerows(
        [[spreadsheet_cell(value) for value in row] for row in zip(*lists, strict=True)]
    )


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
    tree.attrs = {
        name: int(value) if isinstance(value, bool) else value for name, value in tree.attrs.items()
    }  # NetCDF has no truth values
    with disk.writing(path, "export again"), steady(path) as stream:
        tree.to_netcdf(stream, engine="h5netcdf", mode="w")
    return path


def export_tensorboard(run: Run, folder: Path, *, force: bool = False) -> Path:
    """Write the streams of scalars as events of TensorBoard, tags ``stream/metric``.

    Raises:
        MissingExtraError: tensorboard is not installed.
        RecipeError: the folder exists and ``force`` is not set.
        OutputError: a file cannot be written.
    """
    records = library("tensorboard.summary.writer.record_writer", "tensorboard")
    with (
        disk.filling(folder, force=force) as place,
        open(place / f"events.out.tfevents.{time.time_ns()}.biograd", "xb") as file,
    ):
        writer = records.RecordWriter(file)
        for event in _events(run):
            writer.write(event.SerializeToString())
    return folder


def _events(run: Run) -> Iterator[Any]:
    """Yield the events of TensorBoard; its own writer would meet a full disk in a thread."""
    event = library("tensorboard.compat.proto.event_pb2", "tensorboard").Event
    summary = library("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
    yield event(wall_time=time.time(), file_version="brain.Event:2")
    for stream in run.streams:
        table = run.scalars(stream)
        for name in sorted(table.keys() - {"step", "epoch", "wall_time"}):
            tag = visible(f"{stream}/{name}")
            for step, value, when in zip(
                table["step"], table[name], table["wall_time"], strict=True
            ):
                if not np.isnan(value):
                    scalar = summary.Value(tag=tag, simple_value=float(value))
                    said = summary(value=[scalar])
                    yield event(wall_time=float(when), step=int(step), summary=said)
