"""The Spiking Heidelberg Digits, Spiking Speech Commands, and sets of the same layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py

from biograd.checking import NoSettings
from biograd.data.files.archives import located
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows import tables
from biograd.data.sources.hdf5 import read_file
from biograd.errors import RecipeError

SPEAKER = "extra/speaker"


@with_settings(NoSettings)
def read(request: Request, _settings: NoSettings) -> Parts:
    """Return events ``[B, T, units]`` of a file for each split; groups are the speakers.

    ``spikes/times`` are seconds, often float16: they become float64 before they are scaled, since
    microseconds would overflow.  ``files`` of the recipe name the splits.

    Raises:
        RecipeError: ``files`` has other keys than ``train``, ``validation``, ``test``.
        DataError: a file is missing or damaged.

    Source: B. Cramer et al., IEEE Transactions on Neural Networks and Learning Systems 33:2744
    (2022).
    """
    recipe, found = request.recipe, dict[str, Parts]()
    if not {"train"} <= set(recipe.files) <= {"train", "validation", "test"}:
        keys = ", ".join(recipe.files)
        raise RecipeError(f"dataset {request.name}: files: {keys}: must be train, validation, test")
    for split, path in located(request).items():
        named = {"group": SPEAKER} if _has(path, SPEAKER) else {}
        units = recipe.units or request.units()
        changed = dataclasses.replace(recipe, keys=named, time_unit="s", units=units)
        found[split] = read_file(path, dataclasses.replace(request, recipe=changed))
    return tables.joined(found, request.name)


def _has(path: Path, name: str) -> bool:
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            return name in file
    except (OSError, RuntimeError, KeyError, ValueError):
        return False  # what is wrong is said where the file is read
