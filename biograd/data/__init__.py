"""Data: from a dataset recipe to two checked splits, and from a split to batches.

A source is a module with ``read(request) -> (train, test)``; it is imported when it is used.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from biograd.data.request import Request
from biograd.data.splits import (
    Batch,
    Dataset,
    Evaluated,
    Split,
    batches,
    class_balanced,
    digest,
    stratified,
)
from biograd.errors import DataError, RecipeError, nearest
from biograd.randomness import generator
from biograd.recipes import DatasetRecipe

__all__ = ["SOURCES", "Batch", "Dataset", "Split", "batches", "class_balanced", "load"]

SOURCES = {
    "digits": "biograd.data.digits",
    "idx": "biograd.data.idx",
    "yin_yang": "biograd.data.yin_yang",
    "random_manifolds": "biograd.data.random_manifolds",
}


def load(
    recipe: DatasetRecipe,
    *,
    name: str,
    data_dir: Path | None = None,
    offline: bool = False,
    seed: int = 0,
) -> Dataset:
    """Return the dataset of a recipe, complete and checked.

    With ``recipe.validation > 0`` the dataset's ``test`` split is that share of the training
    split, held out class by class and the same for every seed; the true test split is dropped
    before anything looks at it.  ``training_examples`` and ``test_examples`` then shorten the two
    splits, whatever the seed to the same rows.

    Args:
        name: opens every message and names the cache folder.
        data_dir: folder that already holds the files; see :mod:`biograd.data.fetch`.
        offline: never touch the network.
        seed: for a generated source whose recipe states no seed of its own.

    Raises:
        RecipeError: unknown source or setting.
        DataError: a file is missing or altered, or a row cannot be learned from.
    """
    if recipe.source not in SOURCES:
        hint = nearest(recipe.source, SOURCES)
        raise RecipeError(f"dataset {name}: source = {recipe.source!r}: {hint}")
    source = importlib.import_module(SOURCES[recipe.source])
    train, test = source.read(Request(recipe, name, data_dir, offline, seed))
    shape = recipe.shape or tuple(train.inputs.shape[1:])
    if recipe.validation:
        train.validate(shape, recipe.classes, f"{name}: train split")
        train, test = _hold_out(train, recipe.validation, name)
    evaluated_on: Evaluated = "validation" if recipe.validation else "test"
    whole = Dataset(name, shape, recipe.classes, train, test, "", evaluated_on)
    whole.validate()
    train = _shortened(train, recipe.training_examples, f"{name}: training_examples")
    test = _shortened(test, recipe.test_examples, f"{name}: test_examples")
    return dataclasses.replace(whole, train=train, test=test, sha256=digest(train, test))


def _hold_out(train: Split, share: float, name: str) -> tuple[Split, Split]:
    """Divide the training split; the stream has a fixed seed, so that all runs share the rows."""
    count = round(len(train) * share)
    if not 0 < count < len(train):
        rows = f"{count} of {len(train)} training rows"
        raise DataError(f"{name}: validation = {share}: cannot hold out {rows}")
    kept, taken = stratified(train.targets, count, generator(0, "validation"))
    return train.rows(kept), train.rows(taken)


def _shortened(split: Split, count: int, where: str) -> Split:
    """Return ``count`` rows of a split, every class in proportion; 0: all of it."""
    if not count:
        return split
    if count > len(split):
        raise DataError(f"{where} = {count}: the split has {len(split)} rows")
    _left, taken = stratified(split.targets, count, generator(0, "shortened"))
    return split.rows(taken)
