"""Analyses kept beside a run, in ``run.h5.analyses/NAME.h5``, and made again when it changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from biograd import __version__, disk
from biograd.analyses.of_run import Named, analyse, settings_of
from biograd.disk.hdf5_streams import create
from biograd.errors import RunFileError
from biograd.runs.checked import open_file
from biograd.runs.parts.seal import written_digest
from biograd.runs.reader import Run
from biograd.runs.storage import RunPaths
from biograd.runs.stored_arrays import write_dataset

FORMAT = "biograd-analysis"


class Kept(NamedTuple):
    """An analysis.

    Attributes:
        arrays: by name.
        file: where it lies.
        fresh: whether it was made just now.
    """

    arrays: Named
    file: Path
    fresh: bool


def folder_of(run: Run) -> Path:
    """Return the folder of a run's analyses, beside it."""
    file = RunPaths.of(run.path).file
    return file.with_name(file.name + ".analyses")


def mark(run: Run, name: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return what an analysis was made of: state of the run, version, settings."""
    state = hashlib.sha256(run.commits.tobytes())
    state.update(f"{run.attributes.get('run_id')} {run.status}".encode())
    if run.path.is_file():
        found = run.path.stat()
        unsealed = f"{found.st_size} {found.st_mtime_ns}"
        state.update((written_digest(run.path) or unsealed).encode())
    return {
        "format": FORMAT,
        "analysis": name,
        "settings": json.dumps(settings, sort_keys=True),
        "run": state.hexdigest(),
        "biograd_version": __version__,
    }


def kept(run: Run, name: str, settings: dict[str, Any] | None = None) -> Kept:
    """Return an analysis of a run, from its file if that is still true, else made and written.

    Raises:
        RecipeError: there is no such analysis or setting.
        RunFileError: the run does not hold what it needs.
        OutputError: its file cannot be written.
    """
    chosen = settings_of(name, settings)
    about, file = mark(run, name, chosen), folder_of(run) / f"{name}.h5"
    if (found := _read(file, about)) is not None:
        return Kept(found, file, False)
    arrays = analyse(run, name, **chosen)
    with disk.writing(file, "analyse the run again"), _stored(file) as stored:
        stored.attrs.update(about)
        for key, values in arrays.items():
            write_dataset(stored, key, values)
    return Kept(arrays, file, True)


@contextlib.contextmanager
def _stored(file: Path) -> Iterator[h5py.File]:
    """Create a file in the folder of analyses, which may be made and is never a link."""
    folder = file.parent
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
    try:
        with create(file) as stored:
            yield stored
    except BaseException:
        with contextlib.suppress(OSError):  # it stays if it holds another analysis
            folder.rmdir()
        raise


def _read(file: Path, about: dict[str, str]) -> Named | None:
    """Return what a file holds; None: it is missing, damaged, or was made of something else."""
    try:
        with open_file(file) as stored:
            attributes = stored.attributes("")
            if any(attributes.get(key) != value for key, value in about.items()):
                return None
            return {name: stored.array(name, "iufb") for name in stored.datasets()}
    except (OSError, RunFileError):
        return None
