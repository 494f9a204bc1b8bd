"""Let a finished file explain itself: named axes, a sentence for everything, and a README.

Axes are HDF5 dimension scales in the group of the data set, as netCDF4 looks for them, so that
each group can be opened by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from biograd.runs.layout import Array, LayerInfo
from biograd.runs.schema.meaning import GROUPS, axes, meaning
from biograd.runs.schema.readme import readme
from biograd.runs.schema.row_info import RowInfo
from biograd.runs.stored_arrays import write_dataset, write_text

LONG = ("spike", "edge")
"""Axes that are only counted: they have no coordinates."""
NAMELESS = "This is a netCDF dimension but not a netCDF variable."
"""How netCDF4 calls a scale that is only a length."""


def explain(
    output: h5py.File, layers: Mapping[str, LayerInfo], rows: Mapping[str, RowInfo]
) -> None:
    """Write README, axes and sentences into a file that holds everything else."""
    write_text(output, "README", readme(output, layers).encode("ascii", "replace"))
    known = _coordinates(output)
    for name in _datasets(output):
        item = output[name]
        for axis, dim in enumerate(axes(name, item.ndim, rows)):
            _attach(output, name, axis, dim, known, layers)
        if _stands_by_stimuli(output, name):
            _label(output, name)
    for name in _datasets(output):
        _say(output[name], meaning(name, layers, rows)._asdict())
    output.visititems(lambda name, item: _say_group(name, item))


def _datasets(output: h5py.File) -> list[str]:
    names: list[str] = []
    output.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return names


def _coordinates(output: h5py.File) -> dict[str, Array]:
    """Return the coordinates that axes have wherever they stand."""
    found = {}
    if "snapshots/step" in output:
        found["snapshot"] = output["snapshots/step"][()]
    if "probe/index" in output:
        found["probe"] = output["probe/index"][()]
    return found


def _attach(
    output: h5py.File,
    name: str,
    axis: int,
    dim: str,
    known: Mapping[str, Array],
    layers: Mapping[str, LayerInfo],
) -> None:
    """Give one axis of a data set its scale, which is made if it is not there."""
    item = output[name]
    item.dims[axis].label = dim
    if name.rpartition("/")[2] == dim:  # it is the coordinate
        if not item.is_scale:
            item.make_scale(dim)
        return
    scale = f"{item.parent.name.strip('/')}/{dim}"
    if scale not in output:
        _write_scale(output, scale, _values(name, dim, item.shape[axis], known, layers))
    if not output[scale].is_scale:
        output[scale].make_scale(dim)
    item.dims[axis].attach_scale(output[scale])


def _values(
    name: str, dim: str, size: int, known: Mapping[str, Array], layers: Mapping[str, LayerInfo]
) -> Array:
    if dim in LONG:
        return np.zeros(size, np.uint8)
    layer = layers.get(name.split("/")[1]) if name.startswith("layers/") else None
    if dim == "unit" and layer is not None and len(layer.units) == size:
        return layer.units
    if dim == "time" and layer is not None:
        return np.arange(size) * float(layer.dt_ms or 1)
    values = known.get(dim)
    return np.arange(size) if values is None or len(values) != size else values


def _write_scale(output: h5py.File, name: str, values: Array) -> None:
    item = write_dataset(output, name, values)
    if name.rpartition("/")[2] in LONG:
        item.make_scale(f"{NAMELESS}{len(values):10d}")


def _stands_by_stimuli(output: h5py.File, name: str) -> bool:
    top = name.split("/")[0]
    return top in ("layers", "outputs") and "probe" in [one.label for one in output[name].dims]


def _label(output: h5py.File, name: str) -> None:
    """Give what stands by stimuli the groups of these as a further coordinate, as CF has it."""
    item = output[name]
    place = f"{item.parent.name.strip('/')}/label"
    if name.rpartition("/")[2] in ("probe", "label") or "probe/label" not in output:
        return
    if place not in output:
        write_dataset(output, place, output["probe/label"][()])
        output[place].dims[0].label = "probe"
        output[place].dims[0].attach_scale(output[f"{item.parent.name.strip('/')}/probe"])
    item.attrs["coordinates"] = "label"


def _say(item: Any, texts: Mapping[str, str]) -> None:
    for key, text in texts.items():
        item.attrs[key] = text


def _say_group(name: str, item: Any) -> None:
    if isinstance(item, h5py.Group):
        top, *rest = name.split("/")
        of = f" (here: {'/'.join(rest)})" if rest else ""
        item.attrs["description"] = GROUPS.get(top, "of another program") + of
