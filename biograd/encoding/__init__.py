"""Encodings: how a datum becomes an input current or a spike train.

To add one: write a class in a file of its own, and name it in ``ENCODINGS``, or in the entry points
``biograd.encodings`` of another package.
"""

from __future__ import annotations

from biograd.encoding.current import Current
from biograd.encoding.delta import Delta
from biograd.encoding.encoding import Encoding
from biograd.encoding.given import Given, check_duration
from biograd.encoding.latency import Latency
from biograd.encoding.poisson import Poisson
from biograd.encoding.rows import RowCurrent
from biograd.recipes import EncodingRecipe
from biograd.registry import Registry

__all__ = [
    "ENCODINGS",
    "Current",
    "Delta",
    "Encoding",
    "Given",
    "Latency",
    "Poisson",
    "RowCurrent",
    "build",
    "check_duration",
]

ENCODINGS: Registry[type[Encoding]] = Registry(
    "biograd.encodings",
    {
        "current": Current,
        "poisson": Poisson,
        "latency": Latency,
        "delta": Delta,
        "rows": RowCurrent,
        "given": Given,
    },
)


def build(recipe: EncodingRecipe, shape: tuple[int, ...]) -> Encoding:
    """Return the encoding of a recipe for inputs ``[B, *shape]``, or ``[B, T, *shape]``.

    Raises:
        RecipeError: unknown kind, a trial that is not a whole number of steps, or a shape or
            rate that the encoding cannot represent.
    """
    return ENCODINGS.find(recipe.kind, "encoding.kind")(recipe, shape)
