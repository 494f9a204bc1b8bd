"""Recipes: TOML files that become frozen dataclasses, or one line that says why they cannot.

A model recipe says what the data go through and how it learns, a dataset recipe what goes in.
Every key has a type, most a range; an unknown key, a wrong type or a value out of range is
refused with the file, the key and the nearest valid word.

Why some are lazy: the recipe of a network holds neurons, which are written for torch, and a line of
help or a misspelt name should not wait for that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from biograd.checking import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Range,
    Table,
    construct,
    validate,
)
from biograd.recipes.dataset_recipe import (
    FUNCTION,
    OWN,
    DataFile,
    DatasetRecipe,
    dataset_table,
    load_dataset,
    title,
)
from biograd.recipes.encoding_recipe import EncodingRecipe
from biograd.recipes.learning import DecorrelationRecipe, LocalRecipe, TrainingRecipe
from biograd.recipes.module_recipe import (
    ModuleRecipe,
    check_consent,
    is_module,
    model_table,
)
from biograd.recipes.toml import (
    Laid,
    blamed,
    check_depth,
    merge,
    names,
    override,
    read,
    settings,
    shipped,
)

if TYPE_CHECKING:
    from biograd.recipes.architecture import (
        DelayRecipe,
        MixerRecipe,
        NetworkRecipe,
        PopulationRecipe,
        ProjectionRecipe,
    )
    from biograd.recipes.model import ModelRecipe, load_model

__all__ = [
    "Range",
    "Positive",
    "NotNegative",
    "Fraction",
    "Count",
    "Table",
    "construct",
    "validate",
    "shipped",
    "names",
    "read",
    "merge",
    "override",
    "Laid",
    "blamed",
    "settings",
    "check_depth",
    "NetworkRecipe",
    "DelayRecipe",
    "MixerRecipe",
    "PopulationRecipe",
    "ProjectionRecipe",
    "EncodingRecipe",
    "DecorrelationRecipe",
    "LocalRecipe",
    "TrainingRecipe",
    "ModuleRecipe",
    "check_consent",
    "is_module",
    "model_table",
    "ModelRecipe",
    "load_model",
    "DataFile",
    "DatasetRecipe",
    "load_dataset",
    "dataset_table",
    "FUNCTION",
    "OWN",
    "title",
]


def __getattr__(name: str) -> object:
    """Import the recipe of a model, or of a part of it, on its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'biograd.recipes' has no attribute {name!r}")
    place = "model" if name in ("ModelRecipe", "load_model") else "architecture"
    return getattr(importlib.import_module(f"biograd.recipes.{place}"), name)
