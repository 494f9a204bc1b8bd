"""What a source is asked for: the recipe, and where and how to look; and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

from torch import Tensor

from biograd.data.source import Source
from biograd.environments import Environment
from biograd.errors import BiogradError, DataError, RecipeError, brief
from biograd.recipes import DatasetRecipe, Range, construct

Settings = TypeVar("Settings")
MOST_ROWS = 10**7
"""Rows that a source generates; each takes microseconds and some bytes."""
Rows = Annotated[int, Range(1, MOST_ROWS)]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a source has read.

    Attributes:
        sources: by split, ``train``, ``validation``, ``test``; ``train`` alone is then divided.
        groups: of the rows of ``train``, int64 ``[N]``: rows of a group stay together when they
            are divided.
        notes: what is to be said of them, a sentence each.
        classes, task: what the data say of themselves; 0, "": nothing.
        environment: gives observations and rewards to the rows, which are the episodes' seeds.
    """

    sources: Mapping[str, Source]
    groups: Tensor | None = None
    notes: tuple[str, ...] = ()
    classes: int = 0
    task: str = ""
    environment: Environment | None = None


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

    def units(self) -> int:
        """Return the number of channels of the recipe's ``shape``.

        Raises:
            RecipeError: ``shape`` is not one number.
        """
        shape = self.recipe.shape
        if len(shape) != 1:
            raise RecipeError(f"dataset {self.name}: shape = {list(shape)}: write [units]")
        return shape[0]

    def steps(self, key: str, duration_ms: float) -> int:
        """Return a duration in steps.

        Raises:
            RecipeError: it is not a whole number of them.
        """
        found = round(duration_ms / self.dt_ms)
        if abs(found * self.dt_ms - duration_ms) > 1e-6 * self.dt_ms:
            raise RecipeError(
                f"dataset {self.name}: settings.{key} = {duration_ms:g}: is not a whole number of "
                f"steps of encoding.dt_ms = {self.dt_ms:g}"
            )
        return found

    def chance(self, key: str, rate_hz: float) -> float:
        """Return the probability of a spike in a step, ``rate dt``.

        Raises:
            RecipeError: it is more than 1.
        """
        found = rate_hz * self.dt_ms / 1000
        if found > 1:
            raise RecipeError(
                f"dataset {self.name}: settings.{key} = {rate_hz:g}: is more than a spike in each "
                f"step of encoding.dt_ms = {self.dt_ms:g}"
            )
        return found

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


def with_settings(
    kind: type[Settings],
) -> Callable[[Callable[[Request, Settings], Parts]], Callable[[Request], Parts]]:
    """Make a source of a function of request and settings: a recipe's ``[settings]`` as ``kind``.

    The source carries ``kind`` as ``Settings``, so that its keys can be listed.

    Raises:
        RecipeError: see ``Request.settings``; from the source, when it reads.
    """

    def made(read: Callable[[Request, Settings], Parts]) -> Callable[[Request], Parts]:
        @wraps(read)
        def source(request: Request) -> Parts:
            return read(request, request.settings(kind))

        vars(source)["Settings"] = kind
        return source

    return made


def read_by_other(read: Callable[[Request], Parts], request: Request) -> Parts:
    """Return what a source of another package reads.

    Raises:
        DataError: it fails, or returns something else.
    """
    where = f"dataset {request.name}: source = {request.recipe.source!r} ({read.__module__})"
    try:
        parts: object = read(request)
    except (BiogradError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{where} fails: {type(error).__name__}: {brief(str(error))}") from error
    if not isinstance(parts, Parts):
        raise DataError(f"{where} returns {type(parts).__name__}, not biograd.data.Parts")
    return parts
