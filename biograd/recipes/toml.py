"""Recipe files: where they lie, how they are read, what is laid over them."""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from biograd.checking import Table
from biograd.errors import RecipeError, brief, check_text, nearest

Thing = TypeVar("Thing")
LONGEST, LONGEST_NAME, DEEPEST = 8 * 2**20, 255, 60
"""Bytes of a recipe and of a file's name, and how deep its tables and lists may lie."""
LONGEST_INTEGER = 2000
"""Bits of a whole number, which messages can still show; where it counts, 63 are the limit."""


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
    check_text(text)
    if len(os.fsencode(Path(text).name)) > LONGEST_NAME:
        raise RecipeError(f"{brief(text)}: no file has a name of more than {LONGEST_NAME} bytes")
    path = shipped(folder) / f"{text}.toml"
    if text not in names(folder):
        path = Path(text)
        endings = (".toml", ".json") if folder == "cli" else (".toml",)
        if path.suffix not in endings or not path.is_file():
            what = {"models": "model", "datasets": "dataset", "cli": "study"}[folder]
            raise RecipeError(f"no {what} {text!r}: {nearest(text, names(folder))}")
    kind = path.suffix[1:].upper()
    try:
        if path.stat().st_size > LONGEST:
            raise RecipeError(f"{path}: longer than {LONGEST // 2**20} MB: not a recipe")
        text = path.read_text(encoding="utf-8")
        table: object = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, OSError) as error:  # what either reader raises is a ValueError
        raise RecipeError(f"{path}: not readable as {kind}: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: not readable as {kind}: nested too deeply") from error
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: must be a table")
    check_depth(table, path)
    return table, path


def check_depth(value: object, where: object) -> None:
    """Refuse tables and lists within each other beyond ``DEEPEST``, and endless whole numbers.

    Raises:
        RecipeError: they are; ``where`` opens the message.
    """
    layer = [value]
    for _ in range(DEEPEST):
        bits = max((each.bit_length() for each in layer if isinstance(each, int)), default=0)
        if bits > LONGEST_INTEGER:
            raise RecipeError(f"{where}: a whole number of {bits} bits: no recipe has one")
        layer = [
            item
            for each in layer
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    if layer:
        raise RecipeError(f"{where}: tables or lists more than {DEEPEST} deep: no recipe has them")


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
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > DEEPEST:
            raise RecipeError(f"--set {assignment!r}: write KEY=VALUE, as in training.epochs=5")
        patch: Any = _value(text.strip(), key)
        for part in reversed(parts):
            patch = {part: patch}
        table = merge(table, patch)
    return table


def _value(text: str, key: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--set {key}: not readable as TOML: {error}") from error
    check_depth(value, f"--set {key}")
    return value


Laid = Sequence[tuple[str, Table]]
"""What is laid over a file, in this order: what the user calls it, and the table."""


def settings(assignments: Iterable[str], prefix: str = "") -> Laid:
    """Return assignments of ``--set`` by what the user calls them.

    Args:
        prefix: of the keys, as the user writes them.
    """
    return [(f"--set {prefix}{brief(each, 80)}", override({}, [each])) for each in assignments]


def blamed(make: Callable[[Table], Thing], laid: Laid, where: Sequence[object]) -> Thing:
    """Return what ``make`` makes of a file and what is laid over it.

    Args:
        where: what messages about the file begin with.

    Raises:
        RecipeError: that of the file, or of the option that brought it in, with its name.
    """
    try:
        return make(merged(laid))
    except RecipeError as error:
        said = str(error)
        first = (n for n in range(len(laid)) if _refusal(make, merged(laid[:n])) == said)
        guilty = next(first, len(laid))
        if not guilty:
            raise
        for each in where:
            said = said.removeprefix(f"{each}: ")
        raise type(error)(f"{laid[guilty - 1][0]}: {said}") from error


def merged(laid: Laid) -> Table:
    """Return all that is laid over a file, in one table."""
    return functools.reduce(merge, (table for _, table in laid), {})


def _refusal(make: Callable[[Table], object], table: Table) -> str:
    try:
        make(table)
    except RecipeError as error:
        return str(error)
    return ""
