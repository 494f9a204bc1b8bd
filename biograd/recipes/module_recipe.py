"""The recipe of a module of the user's: what code makes it, with which arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from biograd.checking import Checked, Table
from biograd.errors import RecipeError
from biograd.recipes.toml import names, read
from biograd.user_code import NAMED, is_named, short, whole


@dataclasses.dataclass(frozen=True)
class OutputsRecipe(Checked):
    """What of a module's return value its outputs are (``biograd.Outputs``)."""

    part: int | str | None = None
    """Place in a tuple, or key of a dictionary; without it, the value itself."""
    time_first: bool = False
    """The value is ``[T, B, ...]``."""
    over_time: Literal["all", "sum", "mean", "last", "max"] = "all"
    """What becomes of the steps."""


@dataclasses.dataclass(frozen=True)
class ModuleRecipe(Checked):
    """A module of one's own in place of a network of biograd (``--model net.py:Net``)."""

    source: str = ""
    """``FILE.py:NAME`` or ``package.module:NAME`` of the class, or of a function that returns the
    module.  In a recipe's file it is seen from there, and runs with ``--allow-code`` alone."""
    arguments: Table = dataclasses.field(default_factory=dict)
    """Of the class or function, by name (``--model-arg``)."""
    sites: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    """Layers that are sites, or by site those that share a current; without it, all with
    weights."""
    reset: str = ""
    """Puts a module that keeps a state back before every pass: a method of its modules, as
    snnTorch's ``reset_mem``; code is given by ``--reset``."""

    outputs: OutputsRecipe | None = None
    """Of a module that returns more than its outputs, or steps first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plain(self.arguments, "module.arguments")


def model_table(name: str | Path) -> tuple[Table, Path | str, str]:
    """Return the table of a model, where it stands, and what the model is called.

    ``name`` is a shipped name, a TOML file, or the name of code.

    Raises:
        RecipeError: there is no such recipe.
    """
    text = str(name)
    if is_named(text):
        return {"module": {"source": text}}, text, short(text)
    try:
        table, path = read(name, "models")
    except RecipeError as error:
        if text in names("models") or Path(text).suffix == ".toml":
            raise
        raise RecipeError(f"{error}; or a module of your own: FILE.py:NAME") from error
    module = table.get("module")
    if isinstance(module, dict) and isinstance(module.get("source"), str):
        source = module["source"]
        if source and not is_named(source):
            raise RecipeError(
                f"{path}: module.source = {source!r}: write FILE.py:NAME or package.module:NAME"
            )
        table["module"] = {**module, "source": whole(source, path.parent)}
    return table, path, Path(text).stem


def check_plain(arguments: object, where: str) -> None:
    """Refuse arguments that a file cannot hold: texts, numbers, true, false, lists and tables can.

    Raises:
        RecipeError: with the name of the first.
    """
    if isinstance(arguments, dict):
        for name, value in arguments.items():
            check_plain(value, f"{where}.{name}")
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            check_plain(value, where)
    elif not isinstance(arguments, str | int | float):
        raise RecipeError(
            f"{where}: {type(arguments).__name__}: give text, numbers, true, false, lists or tables"
        )


def is_module(name: str) -> bool:
    """Return whether a model is a module of the user's, by its name or by its recipe's file."""
    table = model_table(name)[0].get("module")
    return isinstance(table, dict) and bool(table.get("source"))


def check_consent(source: str, given: object, allowed: bool) -> None:
    """Refuse code that only a file names.

    Args:
        given: what was typed: the name of the code itself, or of a recipe.
        allowed: whether code that files name may run.

    Raises:
        RecipeError: it may not.
    """
    if source and not allowed and not (isinstance(given, str) and is_named(given)):
        name = source if NAMED.fullmatch(source) else f"{source}:NAME"
        raise RecipeError(
            f"{given}: module.source = {name!r}: a file does not run code by itself: look at it, "
            "and give --allow-code (allow_code=True)"
        )
