"""Merge the parts of a run into its finished file.

Killed at any point, it leaves the parts or the finished file: the file appears by one rename, and
the parts are deleted after that. If the deletion is what was cut off, the next one who opens the
run finishes it; the file holds the identity of the parts that it was made of.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from biograd import disk
from biograd.disk.hdf5_streams import steady
from biograd.errors import OutputError, RunFileError
from biograd.runs import stored_arrays
from biograd.runs.contents import GROUPS, Commit, Contents, described, read_parts
from biograd.runs.layout import COMMIT_COLUMNS
from biograd.runs.parts.merge import merge
from biograd.runs.parts.seal import write_seal
from biograd.runs.parts.settling import settle
from biograd.runs.said import TEXTS
from biograd.runs.schema.explained import explain
from biograd.runs.storage import RunPaths, clear, holds_run, own

log = logging.getLogger(__name__)


def pack_run(path: str | os.PathLike[str]) -> Path:
    """Merge the parts of a run that was killed into its finished file, and return that.

    Raises:
        RunFileError: there is no such run, or a part of it is damaged.
        RecipeError: the run is still being written.
        OutputError: the disk is full or cannot be written.
    """
    place = RunPaths.of(path)
    settle(place)
    if holds_run(place.parts):
        lock = own(place)
        try:
            return pack_parts(place)
        finally:
            lock.release()
    if not place.file.is_file():
        raise RunFileError(f"{place.file}: there is no such run")
    return place.file


def pack_parts(place: RunPaths) -> Path:
    """Merge a parts folder that this process owns; see :func:`pack_run`."""
    contents = read_parts(place)
    if contents.status == "running":  # the lock is ours, so nobody writes any more
        contents.status = "crashed"
    hint = f"`biograd resume {place.file}`"
    _check_space(contents, hint)
    with disk.writing(place.file, hint), steady(place.file, place.parts) as stream:
        with h5py.File(stream, "w") as output:
            write_all(contents, output)
        write_seal(stream)
    if not clear(place.parts):
        log.warning("%s: holds files that are not of the run; they stay", place.parts)
    return place.file


def _check_space(contents: Contents, hint: str) -> None:
    """Refuse before HDF5 meets a full disk: it cannot always close such a file cleanly."""
    place = contents.place
    needed = sum(path.stat().st_size for path in (place.parts / "checkpoints").iterdir())
    for segment in contents.sources.segments:
        if not segment.path.exists():
            raise RunFileError(f"{segment.path}: is missing, though it was committed; restore it")
        needed += segment.path.stat().st_size
    free = shutil.disk_usage(place.parts).free
    if free < needed:
        raise OutputError(
            f"{place.file}: no space left on the disk (needs {needed / 1e6:.0f} MB, has"
            f" {free / 1e6:.0f} MB); free space, then {hint}"
        )


def write_all(contents: Contents, output: h5py.File) -> None:
    """Write a whole run into an empty HDF5 file."""
    _write_head(contents, output)
    for name, layer in contents.layers.items():
        constants = json.dumps(dict(layer.neuron_params))
        stored_arrays.write_layer(output.create_group(f"layers/{name}"), layer, constants)
    if contents.probe is not None:
        stored_arrays.write_probe(output, contents.probe)
    merge(contents.sources, output)
    for group in GROUPS:
        output.require_group(group)
    for group in output.get("spikes", {}).values():
        stored_arrays.mark_sorted(group)
    if contents.raster is not None and "trials" in output:
        output["trials"].attrs["duration_ms"] = contents.raster.duration_ms
        output["trials"].attrs["gap_ms"] = contents.raster.gap_ms
    _write_checkpoints(contents, output)
    explain(output, contents.layers, contents.rows)


def _write_head(contents: Contents, output: h5py.File) -> None:
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name, value in {**described(contents), "finished_at": finished}.items():
        output.attrs[name] = value
    stored_arrays.mark_sonata(output)
    for name in TEXTS:
        text = json.dumps(getattr(contents, name)).encode()
        stored_arrays.write_text(output, name, text)
    commits = stored_arrays.write_dataset(output, "progress/commits", contents.numbers)
    commits.attrs["columns"] = json.dumps(COMMIT_COLUMNS)


def _write_checkpoints(contents: Contents, output: h5py.File) -> None:
    """Copy those checkpoints that last, and the last."""
    named = [commit for commit in contents.commits if commit.checkpoint]
    for commit in named:
        if commit.lasting or commit is named[-1]:
            _write_checkpoint(contents, output, commit)


def _write_checkpoint(contents: Contents, output: h5py.File, commit: Commit) -> None:
    """Copy a checkpoint, with the number of rows that were written when it was made."""
    from biograd.runs import checkpoint  # loads torch

    path = contents.place.parts / "checkpoints" / str(commit.checkpoint)
    body, text = checkpoint.load_bytes(path, commit.checkpoint_sha256)
    group = output.create_group(f"checkpoints/{commit.checkpoint}")
    group["tensors"] = np.frombuffer(body, np.uint8)
    stored_arrays.write_text(group, "meta", text)
    group.attrs["sha256"] = str(commit.checkpoint_sha256)
    group.attrs["commit"] = np.array(commit.numbers, np.int64)
    group.attrs["rows"] = json.dumps(commit.rows)
    group.attrs["lasting"] = commit.lasting
