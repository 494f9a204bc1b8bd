"""Data: from a recipe, or what the user gives, to sources and a task; from a source to batches.

To add a source: write ``read(request) -> Parts`` in a file of its own, ``with_settings`` if it has
keys of its own, and name it in ``SOURCES``, or in the entry points ``biograd.sources`` of another
package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from biograd.data.choosing import by_turns, divided, stratified
from biograd.data.dataset import Dataset, digest, validate
from biograd.data.recordings import (
    cameras,
    gesture,
    heidelberg,
    nwb,
    sonata_trials,
    speech_commands,
)
from biograd.data.request import Parts, Request, read_by_other, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.data.rows.events import Events
from biograd.data.rows.items import Items
from biograd.data.rows.stream import Stream
from biograd.data.source import Batch, Rows, Source, batches, original, rows_of, streams
from biograd.data.sources import (
    cifar10,
    csv_tables,
    digits,
    environment_rows,
    evidence_accumulation,
    hdf5,
    idx,
    npz,
    own_data,
    own_files,
    pattern_generation,
    random_manifolds,
    yin_yang,
)
from biograd.data.tasked import set_task, shorter, tasked
from biograd.environments import ENVIRONMENTS
from biograd.errors import DataError, RecipeError, fitting
from biograd.randomness import generator
from biograd.recipes import DatasetRecipe
from biograd.registry import Registry

__all__ = [
    "ASKED",
    "SOURCES",
    "Arrays",
    "Batch",
    "Dataset",
    "Events",
    "Items",
    "Parts",
    "Request",
    "Rows",
    "Source",
    "Stream",
    "batches",
    "by_turns",
    "load",
    "original",
    "rows_of",
    "with_settings",
]

SOURCES: Registry[Callable[[Request], Parts]] = Registry(
    "biograd.sources",
    {
        "digits": digits.read,
        "idx": idx.read,
        "yin_yang": yin_yang.read,
        "random_manifolds": random_manifolds.read,
        "pattern_generation": pattern_generation.read,
        "evidence_accumulation": evidence_accumulation.read,
        "nmnist": cameras.read,
        "ncars": cameras.read,
        "stmnist": cameras.read,
        "cifar10_dvs": cameras.read,
        "dvs_gesture": gesture.read,
        "heidelberg": heidelberg.read,
        "speech_commands": speech_commands.read,
        "nwb": nwb.read,
        "sonata": sonata_trials.read,
        "cifar10": cifar10.read,
        "csv": csv_tables.read,
        "npz": npz.read,
        "hdf5": hdf5.read,
        "folder": own_files.read,
        "arrays": own_data.read,
        "torch": own_data.read,
        "stream": own_data.read,
        "python": own_data.function,
        "environment": own_data.read,
        **{name: environment_rows.reader(name) for name in ENVIRONMENTS.own},
    },
)
ASKED = ("arrays", "torch", "stream", "python", "environment")
"""Sources that no file can bring back: each call must be given the data anew."""


BINNED = ("steps", "binning", "augmentation")
TABLE = ("keys", "timed", "split", "time_unit", "units", *BINNED)
RECORDED = ("urls", "files", "split", *BINNED)
FILES = ("path", "paths", *TABLE)
GENERATED = ("settings",)
READS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "idx": ("urls", "files"),
    "yin_yang": GENERATED,
    "random_manifolds": GENERATED,
    "pattern_generation": GENERATED,
    "evidence_accumulation": GENERATED,
    "nmnist": RECORDED,
    "ncars": RECORDED,
    "stmnist": RECORDED,
    "cifar10_dvs": RECORDED,
    "dvs_gesture": (*RECORDED, "settings"),
    "heidelberg": (*RECORDED, "units"),
    "speech_commands": (*RECORDED, "settings", "timed", "workers"),
    "nwb": ("path", "paths", "split", "settings", *BINNED),
    "sonata": ("path", "paths", "split", "settings", "units", *BINNED),
    "cifar10": ("urls", "files"),
    "csv": ("path", "paths", "timed", "split", "settings"),
    "npz": FILES,
    "hdf5": FILES,
    "folder": ("path", "paths", "timed", "split", "workers", "settings", *BINNED),
    "arrays": (*TABLE, "workers"),
    "torch": (*TABLE, "workers", "epoch_rows"),
    "stream": ("timed", "workers", "epoch_rows"),
    "environment": GENERATED,
    **dict.fromkeys(ENVIRONMENTS.own, GENERATED),
}
"""Keys of a dataset's recipe that a source reads, beside those that every one does."""
ALWAYS = (
    *("source", "description", "licence", "shape", "classes", "validation", "task"),
    *("training_examples", "test_examples"),
)


def _check_read(recipe: DatasetRecipe, name: str) -> None:
    """Refuse keys that the source does not read; one of another package may read any.

    Raises:
        RecipeError: with the key.
    """
    if recipe.source not in READS:
        return
    plain = DatasetRecipe(recipe.source)
    for field in dataclasses.fields(recipe):
        key = field.name
        changed = getattr(recipe, key) != getattr(plain, key)
        if changed and key not in (*ALWAYS, *READS[recipe.source]):
            raise RecipeError(
                f"dataset {name}: {key}: has no effect on source = {recipe.source!r}: take it out"
            )


OF_EVENTS = ("time_unit", "units", *BINNED)


def _check_events(parts: Parts, recipe: DatasetRecipe, name: str) -> None:
    """Refuse what is said of events where the data hold none.

    Raises:
        RecipeError: with the key.
    """
    if recipe.source not in (*READS, "python") or any(map(_holds_events, parts.sources.values())):
        return
    for key in OF_EVENTS:
        if getattr(recipe, key) != getattr(DatasetRecipe(recipe.source), key):
            raise RecipeError(
                f"dataset {name}: {key}: has no effect: the data hold no events (times and units)"
            )


def _holds_events(source: Source) -> bool:
    inner = getattr(source, "source", None)
    return isinstance(source, Events) or (inner is not None and _holds_events(inner))


def load(
    recipe: DatasetRecipe,
    *,
    name: str,
    data_dir: Path | None = None,
    offline: bool = False,
    seed: int = 0,
    own: Any = None,
    timed: bool = False,
    dt_ms: float = 1.0,
) -> Dataset:
    """Return the dataset of a recipe, checked, with the task that its targets set.

    With ``recipe.validation > 0`` the validation split is that share of the training split, held
    out in the proportion of the task's strata and the same for every seed; other validation rows
    are dropped, and the test split is not looked at until the training has ended.
    ``training_examples`` and ``test_examples`` then shorten the splits, whatever the seed to the
    same rows.  Own data without splits are divided by ``recipe.split``.

    Args:
        name: opens every message and names the cache folder.
        data_dir: folder that already holds the files; see :mod:`biograd.data.files.fetch`.
        offline: never touch the network.
        seed: for a generated source whose recipe states no seed of its own.
        own: the user's own data, or the text that names their function.
        timed: whether inputs have a time axis, beside what the recipe says.
        dt_ms: length of a step, in which events are binned.

    Raises:
        RecipeError: unknown source or setting.
        DataError: a file is missing or altered, or a row cannot be learned from.
    """
    read = SOURCES.find(recipe.source, f"dataset {name}: source")
    if recipe.source in ASKED and own is None:
        raise RecipeError(
            f"dataset {name}: source = {recipe.source!r}: no file brings these data back: give "
            "them to the call, or --dataset package.module:function"
        )
    if own is None or recipe.source != "python":
        _check_read(recipe, name)
    whole = recipe.timed or timed
    with fitting(f"dataset {name}: the data are too large", "its sizes"):
        request = Request(recipe, name, data_dir, offline, seed, own, whole, dt_ms)
        ours = recipe.source in SOURCES.own
        parts = read(request) if ours else read_by_other(read, request)
    _check_events(parts, recipe, name)
    task, kind, taken = set_task(parts, recipe, name)
    read_parts = tuple(parts.sources.values())
    looked = [each for split, each in parts.sources.items() if split != "test"]
    for each in looked:
        if isinstance(each, Events):
            each.check()
    # what is computed from a trial must not depend on the trials beside it in a batch
    alike = looked[0].timed and (task.timed or isinstance(looked[0], Events))
    steps = max(each.steps for each in looked) if alike else 0
    sources = {
        split: tasked(each, task, f"{name}: {split} split", steps)
        for split, each in parts.sources.items()
    }
    summed = recipe.binning.get("pool")  # the recipe's shape is that of the sensor
    shape = sources["train"].shape if summed else recipe.shape or sources["train"].shape
    seen = {k: one for k, one in sources.items() if k != "test" or isinstance(one, Arrays)}
    said = [note for k, one in seen.items() for note in shorter(one, task, f"{name}: {k} split")]
    notes = (*parts.notes, *taken, *said)
    if recipe.split != DatasetRecipe.split and (recipe.validation or list(sources) != ["train"]):
        why = "validation" if recipe.validation else "splits of its own"
        raise RecipeError(f"dataset {name}: split: has no effect beside {why}: take it out")
    unseen: dict[str, Source] = {}
    if recipe.validation and parts.environment is not None:
        raise RecipeError(
            f"dataset {name}: validation = {recipe.validation}: an environment has no rows to hold "
            "out: settings.validation_rows are episodes of their own"
        )
    if recipe.validation:
        validate(sources["train"], task, shape, f"{name}: train split")
        unseen = {split: one for split, one in sources.items() if split == "test"}
        sources, held = _hold_out(sources["train"], recipe.validation, name, task, parts.groups)
        notes = (*notes, *held)
    elif list(sources) == ["train"]:
        sources, note = _divide(sources["train"], recipe, name, task, parts.groups)
        notes = (*notes, note)
    evaluated = "validation" if "validation" in sources else "test"
    if evaluated not in sources:
        raise DataError(f"{name}: no rows to evaluate on: give a validation or test split")
    for split in ("train", evaluated):
        validate(sources[split], task, shape, f"{name}: {split} split")
    for split, count, key in (
        ("train", recipe.training_examples, "training_examples"),
        (evaluated, recipe.test_examples, "test_examples"),
    ):
        sources[split] = _shortened(sources[split], count, f"{name}: {key}", task)
    covers = next((part for each in read_parts if (part := getattr(each, "covers", ""))), "")
    if covers:
        notes = (*notes, f"{name}: the digest covers {covers}: other changes are not seen")
    known = digest(*sources.values())  # of held-out data without the test split, as ever
    sources |= unseen
    if not known:
        notes = (*notes, f"{name}: the data do not repeat, nor does the run")
    return Dataset(
        name,
        task,
        sources["train"],
        sources.get("validation"),
        sources.get("test"),
        known,
        notes,
        kind,
        covers,
        parts.environment,
    )


def _strata(source: Source, task: Any) -> torch.Tensor:
    """Return a group number a row, 0 where the task knows none."""
    known = None if source.targets is None else task.strata(source.targets)
    return torch.zeros(len(source), dtype=torch.int64) if known is None else known


def _hold_out(
    source: Source, share: float, name: str, task: Any, groups: torch.Tensor | None
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Divide the training split, by whole groups if there are some, and say so.

    The stream has a fixed seed, so that all runs share the rows.
    """
    if streams(source):
        raise RecipeError(f"{name}: validation = {share}: a stream keeps its first rows by itself")
    count = round(len(source) * share)
    if not 0 < count < len(source):
        rows = f"{count} of {len(source)} training rows"
        raise DataError(f"{name}: validation = {share}: cannot hold out {rows}")
    if groups is not None:
        parts = divided(len(source), (1 - share, share, 0.0), None, groups, name)
        held = groups[parts["validation"]].unique().numel()
        count = len(parts["validation"])
        note = f"{name}: {count} rows are held out for validation, by whole groups: {held} of them"
        return {split: rows_of(source, rows) for split, rows in parts.items()}, (note,)
    kept, taken = stratified(_strata(source, task), count, generator(0, "validation"))
    return {"train": rows_of(source, kept), "validation": rows_of(source, taken)}, ()


def _divide(
    source: Source, recipe: DatasetRecipe, name: str, task: Any, groups: torch.Tensor | None
) -> tuple[dict[str, Source], str]:
    """Divide data that come without splits, and say how."""
    parts = divided(len(source), recipe.split, _strata(source, task), groups, name)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in parts.items())
    how = "by group" if groups is not None else "in proportion of the targets' groups"
    note = f"{name}: no splits were given: divided {how} into rows of {counts}"
    return {split: rows_of(source, rows) for split, rows in parts.items()}, note


def _shortened(source: Source, count: int, where: str, task: Any) -> Source:
    """Return ``count`` rows of a split, every group in proportion; 0: all of it."""
    if not count:
        return source
    if count > len(source):
        raise DataError(f"{where} = {count}: the split has {len(source)} rows")
    _left, taken = stratified(_strata(source, task), count, generator(0, "shortened"))
    return rows_of(source, taken)
