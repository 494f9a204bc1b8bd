"""Hand spikes and activity to the libraries of the field; each is loaded when it is asked for."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from biograd.errors import MissingExtraError
from biograd.runs.layout import Array

if TYPE_CHECKING:
    import neo
    import pynapple

ABOUT = ("snapshot", "probe", "label")


def library(name: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = f"biograd[{extra}]" if extra else name
        raise MissingExtraError(
            f"{name.partition('.')[0]} is not installed: pip install '{wanted}'"
        ) from error


def trains(raster: Any, trials: int, units: Array) -> list[list[Any]]:
    """Return the times of each unit in each trial, ms from its start: ``[trial][unit]`` arrays."""
    position = np.searchsorted(units, raster.unit)
    order = np.lexsort((raster.time_ms, position, raster.trial))
    flat = (raster.trial * len(units) + position)[order]
    bounds = np.searchsorted(flat, np.arange(trials * len(units) + 1))
    times = raster.time_ms[order]
    cut = [times[a:b] for a, b in pairwise(bounds)]
    return [cut[k * len(units) : (k + 1) * len(units)] for k in range(trials)]


def neo_block(spikes: Any) -> neo.Block:
    """Return spikes as a Block of Neo; see :meth:`Spikes.to_neo`."""
    neo, ms = library("neo", "neo"), library("quantities", "neo").ms
    block = neo.Block(name=spikes.layer, description="simulated; each trial begins at rest")
    found = trains(spikes.raster(), len(spikes.rows), spikes.units)
    for number, by_unit in enumerate(found):
        about = {name: int(spikes.trials[name][number]) for name in ABOUT}
        segment = neo.Segment(name=f"trial {int(spikes.rows[number])}", index=number, **about)
        for unit, times in zip(spikes.units.tolist(), by_unit, strict=True):
            train = neo.SpikeTrain(times * ms, t_stop=spikes.duration_ms * ms, unit=unit, **about)
            segment.spiketrains.append(train)
        block.segments.append(segment)
    return block


def pynapple_group(spikes: Any) -> tuple[pynapple.TsGroup, pynapple.IntervalSet]:
    """Return spikes as pynapple has them; see :meth:`Spikes.to_pynapple`."""
    nap = library("pynapple", "")
    start, stop = spikes.trials["start_ms"], spikes.trials["stop_ms"]
    trials = nap.IntervalSet(start, stop, time_units="ms")
    time, node = spikes.timestamps, spikes.node_ids.astype(np.int64)
    order = np.argsort(time, kind="stable")
    time, node = time[order], node[order]
    group = {int(u): nap.Ts(time[node == u], time_units="ms") for u in spikes.units}
    return nap.TsGroup(group, time_support=trials), trials


def rsatoolbox_dataset(activity: Any, snapshot: int) -> Any:
    """Return the activity of one snapshot as a data set of rsatoolbox."""
    data = library("rsatoolbox.data", "analysis")
    values = activity[snapshot]
    stimuli = {name: activity.coords[name] for name in ("probe", "label")}
    return data.Dataset(
        values,
        descriptors={"layer": activity.name, "step": int(activity.steps[snapshot])},
        obs_descriptors={**stimuli, "silent": ~values.any(1)},
        channel_descriptors={"unit": activity.coords["unit"]},
    )
