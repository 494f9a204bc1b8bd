"""What a run says of a data set that only some runs have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from biograd.errors import RecipeError

DEPTH = {"layers": 3, "weights": 3, "outputs": 2}
"""Where such data sets may lie, and at how many names."""
LARGEST = 2**40


@dataclasses.dataclass(frozen=True)
class RowInfo:
    """The row that a snapshot adds to a data set.

    Attributes:
        shape: of a row.
        dims: a name for each of its axes.
        units: text; "1": without a dimension.
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    units: str = "1"

    @property
    def nbytes(self) -> int:
        """Bytes of a row, float32."""
        return 4 * math.prod(self.shape)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"shape": list(self.shape), "dims": list(self.dims), "units": self.units}


def rows_of(values: Mapping[str, Any]) -> dict[str, RowInfo]:
    """Return the data sets that a header or a file describes, of which nothing is known.

    Raises:
        RecipeError: a name is of no such data set, or a value is not of its type.
    """
    given = values.get("rows", {})
    if not isinstance(given, Mapping):
        raise RecipeError("rows is not a table")
    return {name: _row(name, value) for name, value in given.items()}


def _row(name: str, value: Any) -> RowInfo:
    top, *rest = name.split("/")
    if len(rest) + 1 != DEPTH.get(top) or not all(rest) or not isinstance(value, Mapping):
        raise RecipeError(f"{name!r} is no data set of a run")
    shape, dims, units = value.get("shape"), value.get("dims"), value.get("units", "1")
    sound = (
        isinstance(shape, list)
        and isinstance(dims, list)
        and len(shape) == len(dims) <= 16
        and all(type(size) is int and 0 <= size < 2**31 for size in shape)
        and math.prod(shape) < LARGEST
        and all(isinstance(dim, str) and dim and "/" not in dim for dim in dims)
        and isinstance(units, str)
    )
    if not sound:
        raise RecipeError(f"{name}: shape, dims or units")
    return RowInfo(tuple(shape or ()), tuple(dims or ()), units)
