"""Where the tests find real data: BIOGRAD_TEST_DATA, else ``../shared/data`` beside the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """Return the file or folder ``name`` of the shared data; skip the test if it is not there."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("BIOGRAD_TEST_DATA") or root.parent / "shared" / "data")
    path = folder / name
    if not path.exists():
        pytest.skip(f"no {name} in {folder}: set BIOGRAD_TEST_DATA to the folder of real data")
    return path
