"""Rows as CSV, in which nothing is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from biograd.errors import visible

FORMULA = tuple("=+-@＝＋－＠")
"""With these a spreadsheet begins what it computes, or runs."""


def spreadsheet_cell(value: Any) -> Any:
    """Return a cell of a CSV file: a text that is no number and begins as a formula is quoted.

    >>> spreadsheet_cell("=1+1"), spreadsheet_cell("-1e3"), spreadsheet_cell("a=1")
    ("'=1+1", '-1e3', 'a=1')
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.lstrip().startswith(FORMULA) else text
    return text


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV; a pair under ``key`` becomes ``key_low`` and ``key_high``."""
    flat = [
        {spreadsheet_cell(key): spreadsheet_cell(value) for key, value in flattened(row).items()}
        for row in rows
    ]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with a pair under ``key`` as ``key_low`` and ``key_high``."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, (tuple, list)) and len(value) == 2:
            found |= {f"{key}_low": value[0], f"{key}_high": value[1]}
        else:
            found[key] = value
    return found
