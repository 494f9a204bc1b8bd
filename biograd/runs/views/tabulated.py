"""A run as tables of pandas and as labelled arrays of xarray."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.errors import RunFileError
from biograd.runs.layout import Array
from biograd.runs.views.converters import library

if TYPE_CHECKING:
    import pandas
    import xarray


def frame(columns: Mapping[str, Array], name: str) -> pandas.DataFrame:
    """Return the columns of a stream as a DataFrame whose index is the training step."""
    pandas = library("pandas", "xarray")
    table = pandas.DataFrame(dict(columns)).set_index("step")
    table.attrs["stream"] = name
    return table


def data_array(values: Any) -> xarray.DataArray:
    """Return what was recorded at all snapshots as a DataArray that reads what is used."""
    xarray = library("xarray", "xarray")
    described = {"units": values.units, "description": values.description}
    return xarray.DataArray(
        _lazy(values),
        dims=values.dims,
        coords={
            name: ("probe" if name == "label" else name, column)
            for name, column in values.coords.items()
        },
        name=values.name.rpartition("/")[2],
        attrs={name: text for name, text in described.items() if text},
    )


def data_tree(run: Any) -> xarray.DataTree:
    """Return a run as a DataTree; see ``Run.to_xarray``."""
    xarray = library("xarray", "xarray")
    groups = {f"scalars/{name}": _by_row(run.scalars(name), "step") for name in run.streams}
    steps = run.snapshots.get("step")
    for top, tables in (("params", run.params), ("learning", run.learning)):
        for name, columns in tables.items():
            groups[f"{top}/{name}"] = _by_row({"snapshot": steps, **columns}, "snapshot")
    for name in run.layers:
        with contextlib.suppress(RunFileError):  # nothing was recorded of it
            groups[f"layers/{name}"] = data_array(run.activity(name)).to_dataset()
    if run.trials:
        groups["trials"] = _by_row(
            {"trial": np.arange(len(run.trials["label"]))} | run.trials, "trial"
        )
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs.update(run.attributes)
    return tree


def _by_row(columns: Mapping[str, Any], dim: str) -> xarray.Dataset:
    """Return columns as a Dataset whose axis is one of them."""
    xarray = library("xarray", "xarray")
    values = {name: (dim, column) for name, column in columns.items()}
    return xarray.Dataset(values).set_coords(dim)


def _lazy(values: Any) -> Any:
    """Return the array as one that xarray reads block by block."""
    xarray = library("xarray", "xarray")
    indexing = library("xarray.core.indexing", "xarray")

    class StoredRows(xarray.backends.BackendArray):  # type: ignore[misc, name-defined]
        shape, dtype = values.shape, np.dtype(np.float32)

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.BASIC
            return indexing.explicit_indexing_adapter(key, self.shape, support, values.__getitem__)

    return indexing.LazilyIndexedArray(StoredRows())
