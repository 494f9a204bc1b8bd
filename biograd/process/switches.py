"""Environment variables by which a user says no to what biograd does by itself."""

from __future__ import annotations

import os

COMPILED = "BIOGRAD_COMPILED"
"""Set to 0, neurons keep to the operations of torch though numba is installed."""
KEEP_MEMORY = "BIOGRAD_KEEP_MEMORY"
"""Set to 0, the allocator stays as it is."""


def allowed(name: str) -> bool:
    """Return whether an environment variable does not say no."""
    return os.environ.get(name, "1") != "0"
