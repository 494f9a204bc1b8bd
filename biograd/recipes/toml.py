"""Recipe files: where they lie, how they are read, what is laid over them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from biograd.checking import Table
from biograd.errors import RecipeError, nearest


def shipped(folder: Literal["models", "datasets", "cli"]) -> Path:
    """Return the folder of shipped recipes: in the installed package, else beside it."""
    package = Path(__file__).parent.parent
    installed = package / "shipped" / folder
    return installed if installed.is_dir() else package.parent / folder


def names(folder: Literal["models", "datasets", "cli"]) -> list[str]:
    """Return the names of the shipped recipes of one kind, sorted."""
    return sorted(path.stem for path in shipped(folder).glob("*.toml"))


def read(name: str | Path, folder: Literal["models", "datasets", "cli"]) -> tuple[Table, Path]:
    """Return the table and path of a recipe, given a shipped name or a path to a TOML file.

    Raises:
        RecipeError: no such recipe, or the file is not TOML.
    """
    text = str(name)
    path = shipped(folder) / f"{text}.toml"
    if text not in names(folder):
        path = Path(text)
        endings = (".toml", ".json") if folder == "cli" else (".toml",)
        if path.suffix not in endings or not path.is_file():
            what = {"models": "model", "datasets": "dataset", "cli": "study"}[folder]
            raise RecipeError(f"no {what} {text!r}: {nearest(text, names(folder))}")
    try:
        text = path.read_text(encoding="utf-8")
        table: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:  # what either reader raises is a ValueError
        kind = path.suffix[1:].upper()
        raise RecipeError(f"{path}: not readable as {kind}: {error}") from error
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: must be a table")
    return table, path


def merge(base: Table, over: Mapping[str, Any]) -> Table:
    """Return ``base`` with ``over`` laid on it, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def at(table: Any, key: str) -> Any:
    """Return what stands at a dotted key of a table, or of dataclasses."""
    for part in key.split("."):
        table = table[part] if isinstance(table, Mapping) else getattr(table, part)
    return table


def leaves(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a table; an empty table counts as one."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def without(table: Table, keys: Iterable[str]) -> Table:
    """Return a table without some dotted keys."""
    found = {name: value for name, value in table.items() if name not in {*keys}}
    for name, value in found.items():
        inner = [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")]
        if inner and isinstance(value, Mapping):
            found[name] = without(dict(value), inner)
    return found


def override(table: Table, assignments: Iterable[str]) -> Table:
    """Return ``table`` with ``key.path=value`` assignments applied; values are read as TOML.

    >>> override({"training": {"epochs": 3}}, ["training.epochs=5", "estimator=weak"])
    {'training': {'epochs': 5}, 'estimator': 'weak'}

    Raises:
        RecipeError: an assignment is not of the form KEY=VALUE.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {assignment!r}: write KEY=VALUE, as in training.epochs=5")
        patch: Any = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            patch = {part: patch}
        table = merge(table, patch)
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
