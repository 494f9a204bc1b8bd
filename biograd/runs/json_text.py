"""Read JSON of which nothing is known: one error for all that can be wrong with it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.errors import RunFileError, brief

DEPTH = 64
"""Levels of nesting that a run's JSON may have."""
LIMIT = 2**28
"""Bytes that one JSON text may have."""


def parse(text: bytes | str, where: object) -> Any:
    """Return the value of a JSON text.

    Raises:
        RunFileError: it is not JSON, nested too deeply, or holds integers beyond 64 bits or text
            that cannot be written.
    """
    try:
        value = json.loads(text, parse_int=_integer)
        _check(value)
    except (ValueError, RecursionError) as error:  # a UnicodeError is a ValueError
        why = "nested too deeply" if isinstance(error, RecursionError) else brief(str(error))
        raise RunFileError(f"{where}: is damaged ({why})") from error
    return value


def value_of(text: str) -> Any:
    """Return the value of a JSON text, or the text if it is none, as of an option."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text, parse_int=_integer)
    return text


def parse_object(text: bytes | str, where: object) -> dict[str, Any]:
    """Return the JSON object of a text.

    Raises:
        RunFileError: see :func:`parse`, or it is another value.
    """
    value = parse(text, where)
    if not isinstance(value, dict):
        raise RunFileError(f"{where}: is damaged (not a JSON object)")
    return value


def are_texts(table: dict[str, Any]) -> bool:
    """Return whether a table holds tables of texts alone."""
    files = [one.values() if isinstance(one, dict) else [None] for one in table.values()]
    return all(isinstance(text, str) for texts in files for text in texts)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        RunFileError: see :func:`parse_object`, or the file cannot be read.
        FileNotFoundError: it is not there.
    """
    try:
        return parse_object(disk.read_bytes(path, LIMIT), path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror})") from error


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"the integer {digits[:30]} has more than 64 bits")
    return value


def _check(value: Any) -> None:
    """Check depth and text level by level, without recursion."""
    level = [value]
    for _ in range(DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError(f"nested more than {DEPTH} levels deep")
