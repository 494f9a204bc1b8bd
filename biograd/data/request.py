"""What a source is asked for: the recipe, and where and how to look; and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from biograd.data.source import Source
from biograd.errors import RecipeError
from biograd.recipes import DatasetRecipe, construct

Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a source that has none."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a source has read.

    Attributes:
        sources: by split, ``train``, ``validation``, ``test``; ``train`` alone is then divided.
        groups: of the rows of ``train``, int64 ``[N]``: rows of a group stay together when they
            are divided.
        notes: what is to be said of them, a sentence each.
        classes, task: what the data say of themselves; 0, "": nothing.
    """

    sources: Mapping[str, Source]
    groups: Tensor | None = None
    notes: tuple[str, ...] = ()
    classes: int = 0
    task: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """A recipe and the circumstances of its loading.

    Attributes:
        name: of the dataset; it opens every message.
        data_dir: folder that already holds the files, or None.
        offline: never touch the network.
        seed: for a generated source whose recipe states no seed of its own.
        given: the user's own data, or the text that names a function of theirs.
        timed: whether inputs have a time axis.
        dt_ms: length of a step, in which events are binned.
    """

    recipe: DatasetRecipe
    name: str
    data_dir: Path | None = None
    offline: bool = False
    seed: int = 0
    given: Any = None
    timed: bool = False
    dt_ms: float = 1.0

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
