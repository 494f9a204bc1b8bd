"""Spike files of SONATA: the times of each population's nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.data.files.unpacking import check_dataset, check_heap
from biograd.data.formats.address_events import AddressEvents
from biograd.errors import DataError, brief

TO_US = {"ms": 1e3, "s": 1e6}


def read(path: Path) -> AddressEvents:
    """Return the spikes of a file of one population; the node is the channel.

    Times are of the unit that ``timestamps`` names, milliseconds by default, rounded to
    microseconds.

    Raises:
        DataError: no spikes, several populations, or a unit that is not known.

    Source: K. Dai et al., PLoS Computational Biology 16:e1007696 (2020).
    """
    found = populations(path)
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise DataError(f"{path}: several populations: {names}: write a file for each")
    return next(iter(found.values()))


def populations(path: Path) -> dict[str, AddressEvents]:
    """Return the spikes of every population of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            check_heap(file, path)
            group = file.get("spikes")
            if not isinstance(group, h5py.Group):
                raise DataError(f"{path}: no group spikes: is no SONATA file of spikes")
            if "timestamps" in group:  # of the first version: one population without a name
                return {"": _population(group, f"{path}: spikes", "gids")}
            found = {name: _population(group[name], f"{path}: spikes/{name}") for name in group}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as HDF5: {brief(str(error))}") from error
    if not found:
        raise DataError(f"{path}: no population in spikes")
    return found


def _population(group: Any, where: str, nodes: str = "node_ids") -> AddressEvents:
    times, units = (_column(group, name, where) for name in ("timestamps", nodes))
    unit = group["timestamps"].attrs.get("units", "ms")
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    if unit not in TO_US:
        raise DataError(f"{where}: timestamps: units = {unit!r}: must be ms or s")
    if len(times) != len(units):
        raise DataError(f"{where}: {len(times)} timestamps, {len(units)} {nodes}")
    real = times.astype(np.float64) * TO_US[unit]
    if len(real) and not (np.isfinite(real).all() and real.min() >= 0 and real.max() < 2.0**62):
        raise DataError(f"{where}: timestamps: a time is negative or not finite")
    if len(units) and not (units.min() >= 0 and units.max() < 2**31 and (units % 1 == 0).all()):
        raise DataError(f"{where}: {nodes}: must be whole numbers from 0 to 2^31 - 1")
    return AddressEvents(np.round(real).astype(np.int64), units.astype(np.int64)[:, None])


def _column(group: Any, name: str, where: str) -> np.ndarray:
    dataset = group.get(name) if isinstance(group, h5py.Group) else None
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.ndim != 1
        or dataset.dtype.kind not in "iuf"
    ):
        raise DataError(f"{where}: {name}: must be a column of numbers")
    if dataset.external:
        raise DataError(f"{where}: {name}: its values are in another file: write them here")
    check_dataset(dataset, f"{where}: {name}")
    return np.asarray(dataset[()])
