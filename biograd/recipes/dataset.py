"""The recipe of a dataset: where the data come from and what shape they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from biograd.recipes.checking import Count, Range, Table, construct
from biograd.recipes.toml import override, read


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a dataset: its name and the SHA-256 digest of its bytes."""

    name: str
    sha256: str
    sha256_raw: str = ""
    """Digest of the decompressed content, by which an unpacked copy is known."""


@dataclasses.dataclass(frozen=True)
class DatasetRecipe:
    """A dataset file: where the data come from and what shape they have."""

    source: Literal["digits", "idx", "yin_yang", "random_manifolds"]
    description: str = ""
    licence: str = ""
    shape: tuple[Count, ...] = ()
    classes: Count = 10
    urls: tuple[str, ...] = ()
    """Folders that hold the files, the canonical one first, mirrors after it."""
    files: Table = dataclasses.field(default_factory=dict)
    """``idx``: train_images, train_labels, test_images, test_labels, each a :class:`DataFile`."""
    validation: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of the training split held out; with it, the test split is not looked at."""
    training_examples: Annotated[int, Range(0)] = 0
    """Rows to learn from, every class in proportion; 0: all."""
    test_examples: Annotated[int, Range(0)] = 0
    """Rows to evaluate on, every class in proportion; 0: all."""
    settings: Table = dataclasses.field(default_factory=dict)
    """Arguments of a generated source (sizes, seeds)."""


def load_dataset(name: str | Path, assignments: Iterable[str] = ()) -> DatasetRecipe:
    """Return the dataset recipe ``name`` (shipped name or path); ``assignments`` override keys."""
    table, path = read(name, "datasets")
    return construct(DatasetRecipe, override(table, assignments), path)
