"""Names of the columns of a run: of metrics, and of numbers in groups."""

from __future__ import annotations

from collections.abc import Mapping

from biograd.errors import RecipeError
from biograd.runs.layout import check_name
from biograd.runs.parts.buffer import RESERVED
from biograd.runs.schema.run_tables import COORDINATES


def metric_name(name: str) -> str:
    """Return a metric's name as a column has it; a slash becomes a dot.

    Raises:
        RecipeError: the name cannot be stored.
    """
    if "/" in name:
        name = name.replace("/", ".")
    if name in RESERVED:
        raise RecipeError(f"metric {name!r}: the name is taken by a column; choose another")
    return check_name("metric", name)


def flattened(table: str, groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return numbers by group and name as columns ``table/group/name``.

    Raises:
        RecipeError: a name cannot be stored.
    """
    flat: dict[str, float] = {}
    for group, values in groups.items():
        for name, value in values.items():
            if name in COORDINATES:
                raise RecipeError(f"{table}: the name {name!r} is taken by a coordinate")
            path = f"{table}/{check_name(table, group)}/{check_name(group, name)}"
            flat[path] = float(value)
    return flat
