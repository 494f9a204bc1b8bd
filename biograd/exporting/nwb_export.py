"""A snapshot of a run as an NWB file: units with their intervals, trials, stimuli, weights."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from biograd import disk
from biograd.disk.hdf5_streams import steady
from biograd.errors import RecipeError, RunFileError
from biograd.runs.reader import Run
from biograd.runs.views.converters import library, trains
from biograd.runs.views.recorded_spikes import Spikes

NOTE = (
    "Simulated by biograd. Every trial begins at rest and no recording goes on from one trial to "
    "the next: the gaps between trials were not simulated."
)


def export_nwb(run: Run, path: Path, *, snapshot: int = -1, force: bool = False) -> Path:
    """Write the spikes of one snapshot as NWB, times in seconds.

    Units of all spiking layers stand in ``/units`` with the trials as their ``obs_intervals``,
    stimuli in ``stimulus``, weights and outputs in the processing module ``network``.

    Raises:
        MissingExtraError: pynwb is not installed.
        RecipeError: the file exists and ``force`` is not set, or nothing in the run spikes.
        OutputError: the file cannot be written.
    """
    pynwb = library("pynwb", "nwb")
    disk.check_target(path, force)
    layers = [name for name, layer in run.layers.items() if layer.kind == "spiking"]
    if not layers or not run.trials:
        raise RecipeError(f"{run.path}: holds no spikes to export, its layers pass on other values")
    shown = {name: run.spikes(name).snapshot(snapshot) for name in layers}
    file = _file(run, pynwb)
    origin = next(iter(shown.values())).trials["start_ms"][0]
    _add_trials(file, next(iter(shown.values())), origin)
    _add_units(file, shown, origin)
    _add_stimuli(file, run, next(iter(shown.values())), origin, pynwb)
    _add_weights(file, run, snapshot, library("hdmf.common", "nwb"))
    with (
        disk.writing(path, "export again"),
        steady(path) as stream,
        library("h5py", "nwb").File(stream, "w") as output,
        pynwb.NWBHDF5IO(file=output, mode="w") as writer,
    ):
        writer.write(file)
    return path


def _file(run: Run, pynwb: Any) -> Any:
    said = run.attributes
    try:
        start = datetime.datetime.fromisoformat(run.attribute("created_at"))
    except ValueError as error:
        raise RunFileError(f"{run.path}: is damaged (created_at is no date)") from error
    start = start if start.tzinfo else start.replace(tzinfo=datetime.UTC)
    rule, data = said.get("rule", ""), said.get("dataset", "")
    return pynwb.NWBFile(
        session_description=f"Spiking network trained by {rule!r} on {data!r}, shown test stimuli",
        identifier=run.attribute("run_id"),
        session_start_time=start,
        session_id=str(run.path.name),
        notes=NOTE,
        keywords=["simulation", "spiking neural network", "learning"],
        source_script=f"biograd {said.get('biograd_version', '')}",
        source_script_file_name="biograd",
        experimenter=["biograd, simulation"],
        institution="none (simulation)",
        experiment_description=f"run {said.get('run_id')}, seed {said.get('seed')}",
        subject=pynwb.file.Subject(
            subject_id=run.attribute("run_id"),
            description="a simulated network, no animal",
            species="none (simulation)",
            sex="O",
            age="P0D",
        ),
    )


def _seconds(values: Any, origin: float) -> Any:
    return (values - origin) / 1000


def _add_trials(file: Any, spikes: Spikes, origin: float) -> None:
    for name, text in (
        ("snapshot", "which look at the network during its training"),
        ("probe", "row of the stimulus among those of the run"),
        ("label", "class, or group, of the stimulus"),
    ):
        file.add_trial_column(name, text)
    columns = spikes.trials
    for k in range(len(spikes.rows)):
        about = {name: int(columns[name][k]) for name in ("snapshot", "probe", "label")}
        start, stop = (_seconds(float(columns[n][k]), origin) for n in ("start_ms", "stop_ms"))
        file.add_trial(start_time=start, stop_time=stop, **about)


def _add_units(file: Any, shown: dict[str, Spikes], origin: float) -> None:
    file.add_unit_column("layer", "name of the layer in the network")
    file.add_unit_column("unit", "index of the unit in its layer")
    for layer, spikes in shown.items():
        start, stop = (_seconds(spikes.trials[n], origin) for n in ("start_ms", "stop_ms"))
        intervals = np.stack([start, stop], 1)
        for unit, times in _by_unit(spikes, start):
            file.add_unit(spike_times=times, obs_intervals=intervals, layer=layer, unit=unit)


def _by_unit(spikes: Spikes, start: Any) -> Iterator[tuple[int, Any]]:
    by_trial = trains(spikes.raster(), len(spikes.rows), spikes.units)
    for k, unit in enumerate(spikes.units.tolist()):
        parts = [start[row] + times[k] / 1000 for row, times in enumerate(by_trial)]
        yield unit, np.concatenate(parts)


def _add_stimuli(file: Any, run: Run, spikes: Spikes, origin: float, pynwb: Any) -> None:
    if run.probe is None or run.probe.input is None:
        return
    inputs = np.asarray(run.probe.input)
    values = inputs.reshape(len(inputs), -1)[spikes.trials["probe"]]
    file.add_stimulus(
        pynwb.TimeSeries(
            name="stimuli",
            data=values,
            unit="a.u.",
            timestamps=_seconds(spikes.trials["start_ms"], origin),
            description=f"the input of each trial, flattened from {list(inputs.shape[1:])}",
        )
    )


def _add_weights(file: Any, run: Run, snapshot: int, common: Any) -> None:
    if not run.recorded_weights:
        return
    module = file.create_processing_module("network", "parameters of the network at the snapshot")
    for name in run.recorded_weights:
        values = run.weights(name)[snapshot]
        flat = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
        column = common.VectorData(
            name="values",
            description=f"one row a receiving unit, from {list(values.shape)}",
            data=flat,
        )
        table = common.DynamicTable(name=name, description=f"parameter {name}", columns=[column])
        module.add(table)
