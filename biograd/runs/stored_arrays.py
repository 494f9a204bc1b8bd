"""Write data sets the way the layout wants them: gzip 1 and shuffle, fixed text, SONATA marks."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from biograd.runs.layout import SONATA_MAGIC, SONATA_VERSION, Array, LayerInfo, Probe
from biograd.runs.schema.run_tables import chunks_of

SORTING = h5py.enum_dtype({"none": 0, "by_id": 1, "by_time": 2}, basetype="u1")
SMALL = 1024
"""Data sets of fewer bytes are not chunked: the index of the chunks would outweigh the gain."""


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
