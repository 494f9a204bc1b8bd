"""One's own data as they are given to a call: arrays, Datasets, loaders, streams, functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from biograd import user_code
from biograd.data.choosing import SPLITS
from biograd.data.recordings import nwb
from biograd.data.request import Parts, Request
from biograd.data.rows import tables
from biograd.data.rows.arrays import Arrays, as_inputs, as_targets, cast, plain, unmasked
from biograd.data.rows.event_items import are_records, event_items
from biograd.data.rows.items import Items
from biograd.data.rows.stream import FIRST, Stream, is_stream, of_iterable
from biograd.data.source import Source, is_source
from biograd.data.sources import csv_tables, environment_rows, hdf5, npz, own_files
from biograd.environments import is_environment
from biograd.errors import DataError, RecipeError, nearest
from biograd.recipes.dataset_recipe import of_path
from biograd.tasks import make

LOADERS = {"train_dataloader": "train", "val_dataloader": "validation", "test_dataloader": "test"}


def named(given: Any) -> tuple[str, dict[str, Any]]:
    """Return what own data are called and the keys of a recipe that describe them, as text.

    Raises:
        RecipeError: they are none that biograd can read.
    """
    if isinstance(given, str | Path):
        return of_path(str(given))
    by_split = isinstance(given, Mapping) and set(given) <= {*SPLITS} and bool(given)
    if by_split and all(isinstance(each, str | Path) for each in given.values()):
        tables = {split: of_path(str(each))[1] for split, each in given.items()}
        sources = {table["source"] for table in tables.values()}
        if len(sources) == 1 and sources <= {"npz", "hdf5", "nwb", "csv"}:
            paths = {split: table["path"] for split, table in tables.items()}
            return Path(next(iter(paths.values()))).stem, {"source": sources.pop(), "paths": paths}
    first = next(iter(given.values())) if by_split else given
    if is_environment(first):
        return getattr(first, "__name__", type(first).__name__), {"source": "environment"}
    torch_like = isinstance(first, Dataset | DataLoader) or hasattr(first, "train_dataloader")
    if torch_like:
        return type(getattr(first, "dataset", first)).__name__, {"source": "torch"}
    if is_stream(first):
        return getattr(first, "__name__", "stream"), {"source": "stream"}
    if is_source(first) or isinstance(first, Mapping | tuple | list) or _items(first):
        return "arrays", {"source": "arrays"}
    raise RecipeError(
        f"data: {type(given).__name__}: give a shipped name, a file, (inputs, targets), a mapping "
        "of arrays, a torch Dataset or DataLoader, or a function of seed and epoch"
    )


def _items(given: Any) -> bool:
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def read(request: Request) -> Parts:
    """Return the sources of what was given to the call.

    Raises:
        DataError, RecipeError: it cannot be read, in one line.
    """
    return _parts(request.given, request, request.name)


def function(request: Request) -> Parts:
    """Return the sources of what a function without arguments returns.

    Only text that was typed in this very call comes here, ``package.module:function``; no file can
    name code.

    Raises:
        RecipeError: there is no such function.
    """
    text = str(request.given)
    said = f"--dataset {text}"
    found = user_code.load(text, "--dataset").thing
    if is_stream(found) or is_environment(found) or not callable(found):
        return _parts(found, request, text)
    return _parts(user_code.called(found, {}, said), request, text)


def _parts(given: Any, request: Request, where: str) -> Parts:
    """Return the sources of data of any kind."""
    if isinstance(given, Parts):
        return given
    if is_environment(given):
        return environment_rows.parts(given, request, where)
    if hasattr(given, "train_dataloader"):
        given = _module(given)
    if isinstance(given, Mapping) and given and set(given) <= {*SPLITS}:
        return _by_split(given, request, where)
    unknown = sorted({*map(str, given)} - {*SPLITS}) if isinstance(given, Mapping) else []
    if unknown and {*map(str, given)} & {*SPLITS}:
        raise DataError(f"{where}: unknown split {unknown[0]!r}: {nearest(unknown[0], SPLITS)}")
    if isinstance(given, Mapping):
        columns = {name: _column(value, f"{where}: {name}") for name, value in given.items()}
        return tables.read(columns, request, where)
    if isinstance(given, tuple | list) and len(given) in (4, 6):
        names = ("train", "test") if len(given) == 4 else SPLITS
        pairs = zip(names, given[::2], given[1::2], strict=True)
        sources = {s: _pair(x, y, request, f"{where}: {s}") for s, x, y in pairs}
        return Parts(sources, notes=_said(given[0], request, where))
    listed = isinstance(given, tuple | list) and not isinstance(given, Dataset | DataLoader)
    if listed and len(given) == 2:
        one = {"train": _pair(given[0], given[1], request, where)}
        return Parts(one, notes=_said(given[0], request, where))
    if isinstance(given, str | Path):
        return _file(given, request)
    source, notes = _source(given, request, where)
    if isinstance(source, Stream):
        kept = source.first(FIRST)
        held = f"{where}: the first {FIRST} examples of every pass are kept for validation"
        return Parts({"train": source, "validation": kept}, notes=(*notes, held))
    return Parts({"train": source}, notes=notes)


def _module(given: Any) -> dict[str, Any]:
    """Return the loaders of a data module, those that it has."""
    if callable(getattr(given, "setup", None)):
        given.setup("fit")
    found = {}
    for method, split in LOADERS.items():
        loader = getattr(given, method, lambda: None)()
        if loader is not None:
            found[split] = loader
    return found


def _by_split(given: Mapping[str, Any], request: Request, where: str) -> Parts:
    if "train" not in given:
        raise DataError(f"{where}: no train beside {', '.join(given)}")
    parts = {split: _parts(each, request, f"{where}: {split}") for split, each in given.items()}
    for split, part in parts.items():
        alone = list(part.sources) == ["train"] or isinstance(part.sources["train"], Stream)
        if not alone:
            raise DataError(f"{where}: {split} holds splits of its own")
        if split != "train" and isinstance(part.sources["train"], Stream):
            raise DataError(f"{where}: {split} is a stream: it must have rows")
    if isinstance(parts["train"].sources["train"], Stream):
        parts["train"].sources["train"].skip = FIRST if len(parts) == 1 else 0
    if len(parts) == 1:
        return parts["train"]
    sources = {split: part.sources["train"] for split, part in parts.items()}
    notes = [note for part in parts.values() for note in part.notes if "every pass" not in note]
    classes = max(part.classes for part in parts.values())
    return Parts(sources, notes=tuple(notes), classes=classes, task=parts["train"].task)


def _file(given: str | Path, request: Request) -> Parts:
    """Return the sources of a file, a folder or a function that stands for a split."""
    readers = {
        "npz": npz.read, "hdf5": hdf5.read, "nwb": nwb.read, "csv": csv_tables.read,
        "folder": own_files.read, "python": function,
    }  # fmt: skip
    keys = of_path(str(given))[1]
    recipe = dataclasses.replace(request.recipe, paths={}, **keys)
    whole = dataclasses.replace(request, recipe=recipe, given=given)
    return readers[keys["source"]](whole)


def _column(values: Any, where: str) -> Any:
    """Return an array, or a list of rows of different lengths as it is."""
    unmasked(values, where)
    if isinstance(values, torch.Tensor):
        return plain(values, where).numpy()
    if isinstance(values, list | tuple) and len({np.shape(value) for value in values}) > 1:
        return list(values)
    return values if hasattr(values, "shape") else np.asarray(values)


def _heads(targets: Mapping[str, Any], request: Request, where: str) -> torch.Tensor:
    """Return targets by name as one tensor, each head's beside the other's."""
    settings = dict(request.recipe.task)
    if settings.pop("name", "") != "heads":
        names = ", ".join(map(str, targets))
        raise DataError(
            f"{where}: targets by name ({names}): give the task 'heads', with a table for each"
        )
    return make("heads", 0, settings, where).pack(targets, f"{where}: targets")


def _pair(inputs: Any, targets: Any, request: Request, where: str) -> Source:
    column = _column(inputs, where)
    if isinstance(targets, Mapping):
        targets = _heads(targets, request, where)
    if isinstance(column, list):
        raise DataError(f"{where}: rows differ in shape: pad them and give lengths")
    x, y = as_inputs(column, f"{where}: inputs"), as_targets(targets, f"{where}: targets")
    if x.dim() < 2 or not y.dim():
        raise DataError(
            f"{where}: inputs {list(x.shape)}, targets {list(y.shape)}: inputs must be [N, ...] "
            "with an axis of features, x[:, None], and targets [N, ...]"
        )
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} inputs, {len(y)} targets")
    if request.timed and x.dim() < 3:
        raise DataError(f"{where}: inputs are {list(x.shape)}: with time they are [N, T, channels]")
    return Arrays(x, y, request.timed)


def _said(inputs: Any, request: Request, where: str) -> tuple[str, ...]:
    """Return how inputs are taken, where it could be otherwise."""
    column = _column(inputs, where)
    shape = list(np.shape(column))
    notes = cast(column, f"{where}: inputs")
    if len(shape) == 3 and not request.timed:
        notes += (
            f"{where}: inputs {shape} are taken for grids without time: dataset.timed=true, or "
            "encoding.kind = 'given', says that the second axis is time",
        )
    return notes


def _source(given: Any, request: Request, where: str) -> tuple[Source, tuple[str, ...]]:
    """Return the source of a Dataset, a loader or a stream, and what is to be said of it."""
    recipe, notes, collate, workers = request.recipe, list[str](), None, request.recipe.workers
    if isinstance(given, DataLoader):
        _check_loader(given, where)
        collate = None if given.collate_fn is default_collate else given.collate_fn
        workers = workers or given.num_workers
        given = given.dataset
        notes.append(f"{where}: of the loader are its dataset, collate_fn and workers; order and "
                     "batch size are the run's")  # fmt: skip
    if is_source(given):
        return given, tuple(notes)
    if isinstance(given, IterableDataset) or is_stream(given):
        if collate is not None:
            raise DataError(f"{where}: a collate_fn of its own for a stream: take it out")
        if workers:
            raise DataError(
                f"{where}: workers = {workers} on a stream: each would read all of it, or a "
                "part, in an order that depends on their number and that no run could resume: set "
                "workers to 0, or give a Dataset with rows by number"
            )
        return of_iterable(given, recipe.epoch_rows, request.timed, where), tuple(notes)
    if isinstance(given, TensorDataset) and len(given.tensors) == 2 and collate is None:
        return _pair(*given.tensors, request, where), tuple(notes)
    if not _items(given):
        raise RecipeError(
            f"{where}: {type(given).__name__}: is no data that biograd can "
            "read: a Dataset has __len__ and __getitem__"
        )
    if collate is None and len(given) and are_records(given[0]):
        if workers:
            raise DataError(f"{where}: workers = {workers}: have no effect on records of events")
        return event_items(given, request, where), tuple(notes)
    items = Items(given, request.timed, collate=collate, workers=workers, where=where)
    if not items.digest:
        notes.append(f"{where}: examples differ from reading to reading: the run does not repeat")
    return items, tuple(notes)


def _check_loader(loader: DataLoader[Any], where: str) -> None:
    """Refuse an order of the loader's own, which would not be obeyed."""
    plain = (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler)
    own = type(loader.batch_sampler) is not torch.utils.data.BatchSampler
    if isinstance(loader.dataset, IterableDataset):
        return
    if own or type(loader.sampler) not in plain:
        raise DataError(
            f"{where}: the loader has a sampler of its own, but the order is the run's: give the "
            "dataset, or torch.utils.data.Subset of it"
        )
