"""Write data sets the way the layout wants them: gzip 1 and shuffle, fixed text, SONATA marks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from biograd import disk
from biograd.disk.atomic import WholeWrites
from biograd.runs.layout import SONATA_MAGIC, SONATA_VERSION, Array, LayerInfo, Probe
from biograd.runs.schema.run_tables import chunks_of

SORTING = h5py.enum_dtype({"none": 0, "by_id": 1, "by_time": 2}, basetype="u1")
SMALL = 1024
"""Data sets of fewer bytes are not chunked: the index of the chunks would outweigh the gain."""


class _Steady(WholeWrites):
    """A file that keeps its first error to itself, for HDF5 crashes if it cannot flush."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            if self.error is None:
                super().write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and (count := super().readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)  # what a write that failed has left out
        return len(view)


@contextlib.contextmanager
def steady(target: Path, folder: Path | None = None) -> Iterator[FileIO]:
    """Yield a stream for HDF5 that takes the name of a file at the end; see ``disk.replacing``.

    Raises:
        OSError: something could not be written.
    """
    with disk.replacing(target, folder=folder, opened=lambda d: _Steady(d, "w+")) as stream:
        try:
            yield stream
        except (OSError, RuntimeError):
            if cast(_Steady, stream).error is None:
                raise
        failed = cast(_Steady, stream).error
        if failed is not None:
            raise failed


@contextlib.contextmanager
def create(target: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file for writing; see :func:`steady`."""
    with steady(target) as stream, h5py.File(stream, "w") as file:
        yield file


def storage_options(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return how a data set is stored: gzip 1 and shuffle in chunks unless it is small."""
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize < SMALL:
        return {}
    chunks = chunks_of(name, shape, dtype.itemsize)
    return {"chunks": chunks, "compression": "gzip", "compression_opts": 1, "shuffle": True}


def write_dataset(output: h5py.Group, name: str, values: Array) -> h5py.Dataset:
    """Write an array."""
    options = storage_options(name, values.shape, values.dtype)
    return output.create_dataset(name, data=values, **options)


def write_text(output: h5py.Group, name: str, text: bytes) -> None:
    """Write text of fixed length as one scalar: ASCII if it is, as older readers want it."""
    coding = "ascii" if text.isascii() else "utf-8"
    dtype = h5py.string_dtype(coding, max(1, len(text)))
    output.create_dataset(name, data=np.bytes_(text), dtype=dtype)


def write_probe(output: h5py.File, probe: Probe) -> None:
    """Write ``/probe``."""
    for name, values in probe.arrays().items():
        write_dataset(output, f"probe/{name}", values)
    output["probe"].attrs["gap_ms"] = float(probe.gap_ms)


def write_layer(group: h5py.Group, layer: LayerInfo, neuron_params: str) -> None:
    """Write the attributes of a layer and the indices of its recorded units."""
    for name, value in layer.as_json().items():
        if name not in ("unit", "neuron_params") and value is not None:
            group.attrs[name] = value
    group.attrs["neuron_params"] = neuron_params
    write_dataset(group, "unit", layer.units)


def mark_sonata(output: h5py.File) -> None:
    """Write the attributes by which a SONATA reader knows a file."""
    output.attrs["magic"] = np.uint32(SONATA_MAGIC)
    output.attrs["version"] = np.array(SONATA_VERSION, np.uint32)


def mark_sorted(group: h5py.Group) -> None:
    """Say that spikes are sorted by time, the way SONATA does: as an enumeration."""
    group.attrs.create("sorting", 2, dtype=SORTING)
    group["timestamps"].attrs["units"] = "ms"
