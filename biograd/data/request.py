"""What a source is asked for: the recipe, and where and how to look."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from biograd.errors import RecipeError
from biograd.recipes import DatasetRecipe, construct

Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a source that has none."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A recipe and the circumstances of its loading.

    Attributes:
        name: of the dataset; it opens every message.
        data_dir: folder that already holds the files, or None.
        offline: never touch the network.
        seed: for a generated source whose recipe states no seed of its own.
    """

    recipe: DatasetRecipe
    name: str
    data_dir: Path | None = None
    offline: bool = False
    seed: int = 0

    def settings(self, kind: type[Settings]) -> Settings:
        """Return the recipe's ``[settings]`` as a checked dataclass.

        Raises:
            RecipeError: unknown key, wrong type, value out of range.
        """
        return construct(kind, self.recipe.settings, f"dataset {self.name}", "settings")

    def without_files(self) -> None:
        """Refuse files and addresses for a source that would not look at them.

        Raises:
            RecipeError: the recipe has ``files`` or ``urls``.
        """
        for key in ("files", "urls"):
            if getattr(self.recipe, key):
                source = self.recipe.source
                raise RecipeError(
                    f"dataset {self.name}: {key}: source {source!r} reads no files; use 'idx'"
                )
