"""Environment variables by which a user says no to what biograd does by itself."""

from __future__ import annotations

import os

from biograd.errors import RecipeError

COMPILED = "BIOGRAD_COMPILED"
"""Set to 0, neurons keep to the operations of torch though numba is installed."""
KEEP_MEMORY = "BIOGRAD_KEEP_MEMORY"
"""Set to 0, the allocator stays as it is."""


def allowed(name: str) -> bool:
    """Return whether an environment variable does not say no.

    Raises:
        RecipeError: it is neither 0 nor 1, nor empty.
    """
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise RecipeError(f"environment variable {name} = {value!r}: must be 0 or 1")
    return value != "0"
