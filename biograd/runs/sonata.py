"""Hand the spikes of a run to other tools as a plain SONATA file.

Why a second file: libsonata, which most of these tools read with, has no gzip filter.
"""

from __future__ import annotations

import os
from pathlib import Path

from biograd import disk
from biograd.disk.hdf5_streams import create
from biograd.errors import RecipeError
from biograd.runs.layout import Array
from biograd.runs.reader import Run
from biograd.runs.schema.meaning import GROUPS
from biograd.runs.stored_arrays import mark_sonata, mark_sorted


def export_sonata(run: Run, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write the spikes of all spiking layers, uncompressed and sorted by time.

    Each layer is a population ``/spikes/<module path>`` with ``timestamps`` in ms and
    ``node_ids``; ``trial_ids``, ``trial_ptr`` and ``/trials`` come along, readers ignore them.
    Source: SONATA developer guide, "Spike file".

    Raises:
        RecipeError: the file exists and ``force`` is not set, or nothing in the run spikes.
        OutputError: the file cannot be written.
    """
    target = Path(path)
    disk.check_target(target, force)
    names = [name for name, layer in run.layers.items() if layer.kind == "spiking"]
    trials = run.trials
    if not names or not trials:
        raise RecipeError(f"{run.path}: holds no spikes to export, its layers pass on other values")
    members = {name: _members(run, name) for name in names}
    with disk.writing(target, "export again"):
        _write(target, members, trials, _link(run))
    return target


def _members(run: Run, layer: str) -> dict[str, Array]:
    spikes = run.spikes(layer)
    return {
        "timestamps": spikes.timestamps,
        "node_ids": spikes.node_ids,
        "trial_ids": spikes.trial_ids,
        "trial_ptr": spikes.trial_ptr,
    }


def _link(run: Run) -> dict[str, str]:
    """Return what leads from the file back to its run."""
    names = ("run_id", "config_sha256", "rule", "dataset")
    said = {name: str(run.attributes[name]) for name in names if name in run.attributes}
    return {"run": run.path.name, **said}


def _write(
    path: Path,
    layers: dict[str, dict[str, Array]],
    trials: dict[str, Array],
    link: dict[str, str],
) -> None:
    with create(path) as output:
        mark_sonata(output)
        output.attrs.update(link)
        output.create_group("trials").attrs["description"] = GROUPS["trials"]
        for layer, members in layers.items():
            group = output.create_group(f"spikes/{layer}")
            for name, values in members.items():
                group[name] = values
            mark_sorted(group)
            group.attrs["description"] = "trials, not one recording: cut by /trials"
        for name, values in trials.items():
            output[f"trials/{name}"] = values
            if name.endswith("_ms"):
                output[f"trials/{name}"].attrs["units"] = "ms"
