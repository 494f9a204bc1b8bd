"""Digests: by which data are known again; computed and recorded, never asked of one's own data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from biograd import disk
from biograd.errors import DataError

SETTLED_SECONDS = 2.0
"""A file that was written more recently could be written again within one tick of its clock."""


def update(total: Any, values: Tensor | np.ndarray) -> None:
    """Add dtype, shape and values (little-endian) of an array to a running digest."""
    array = values.detach().cpu().contiguous().numpy() if isinstance(values, Tensor) else values
    array = np.ascontiguousarray(array)
    total.update(f"{array.dtype.name}{array.shape};".encode())
    total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).data)


def sha256_of(*arrays: Tensor | np.ndarray) -> str:
    """Return the SHA-256 of the arrays' dtypes, shapes and values."""
    total = hashlib.sha256()
    for values in arrays:
        update(total, values)
    return total.hexdigest()


def combined(*digests: str) -> str:
    """Return one digest of several; "" if one of them is missing."""
    if not all(digests):
        return ""
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return disk.sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def digested(path: Path, kind: str) -> str:
    """Return the digest of a file, of a kind that ``hashlib`` names.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.new(kind, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def of_files(paths: Iterable[Path]) -> str:
    """Return the digest of files: of one its own, of several that of their digests, sorted.

    It is computed anew only if the size or the time of change of one of them is another.
    """
    found = sorted(paths)
    try:
        states = [path.stat() for path in found]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    names = "\n".join(str(path.resolve()) for path in found)
    key = names if len(found) == 1 else hashlib.sha256(names.encode()).hexdigest()
    marks = [[state.st_size, state.st_mtime_ns] for state in states]
    mark = marks[0] if len(found) == 1 else [len(found), hash_of(marks)]
    known = _memory()
    if known.get(key, [])[:2] == mark:
        return str(known[key][2])
    digest = combined(*[sha256(path) for path in found])
    latest = max((state.st_mtime for state in states), default=0.0)
    if time.time() - latest > SETTLED_SECONDS:
        _remember({**_memory(), key: [*mark, digest]})
    return digest


def hash_of(value: Any) -> str:
    """Return the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _place() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("biograd", appauthor=False) / "digests.json"


def _memory() -> dict[str, list[Any]]:
    try:
        found = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(table: dict[str, list[Any]]) -> None:
    """Write the table in one step; what cannot be written is computed again."""
    place = _place()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        disk.write_json(place, table)
