"""Spikes of a tactile sensor of 10 x 10 taxels, MATLAB 5 files, as ST-MNIST has them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from biograd.data.files.unpacking import check_memory, check_size
from biograd.data.formats.address_events import AddressEvents, camera, content
from biograd.errors import DataError, brief

SIDE, NAME = 10, "spiketrain"
HEADER, PACKED = 128, 15


def read(path: Path) -> AddressEvents:
    """Return the events of a ``.mat``: ``spiketrain`` ``[101, n]``, taxels -1, 0, 1, then seconds.

    Polarity is 1 of a positive entry; ``x = taxel % 10``, ``y = taxel // 10``.  Times become
    microseconds by truncation.

    Raises:
        DataError: no such matrix, values that are not finite, or sizes beyond what the file holds.

    Source: H. H. See et al., arXiv:2005.04319 (2020).
    """
    table = _matrix(path)
    taxels, seconds = table[: SIDE**2], table[SIDE**2]
    column, taxel = np.nonzero(taxels.T)
    # a time on the edge of a microsecond, but for rounding, belongs behind it
    times = np.floor(seconds[column] * 1e6 + 1e-6)
    return camera(times, taxel % SIDE, taxel // SIDE, taxels[taxel, column] > 0)


def _matrix(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    _check(content(path), path)
    try:
        found = np.asarray(loadmat(path, variable_names=[NAME]).get(NAME))
    except Exception as error:  # scipy's parser raises anything on damage
        raise DataError(f"{path}: cannot be read as MATLAB 5: {brief(str(error))}") from error
    due = f"[{SIDE**2 + 1}, events]"
    if found.ndim != 2 or len(found) != SIDE**2 + 1 or found.dtype.kind not in "iuf":
        raise DataError(f"{path}: {NAME}: is {list(found.shape)} of {found.dtype}: must be {due}")
    table = found.astype(np.float64)
    seconds = table[-1]
    if not np.isfinite(table).all() or (
        len(seconds) and not 0 <= seconds.min() <= seconds.max() < 1e9
    ):
        raise DataError(f"{path}: {NAME}: a value is not finite, or a time not from 0 s")
    return table


def _check(data: bytes, path: Path) -> None:
    """Refuse elements that say that they unpack to more than can be packed.

    An element is type and size, 4 bytes each; one of type 15 holds another, packed by zlib.
    """
    order = "<" if data[126:128] == b"IM" else ">"
    start = HEADER
    while start + 8 <= len(data):
        kind, size = np.frombuffer(data[start : start + 8], f"{order}u4").tolist()
        if start + 8 + size > len(data):
            raise DataError(f"{path}: truncated: an element of {size} bytes at byte {start}")
        if kind == PACKED:
            inner = _first(data[start + 8 : start + 8 + size], path)
            declared = int(np.frombuffer(inner, f"{order}u4")[1])
            check_size(declared, size, path)
            check_memory(declared, path)
        start += 8 + size


def _first(packed: bytes, path: Path) -> bytes:
    """Return the first 8 bytes of what is packed."""
    try:
        found = zlib.decompressobj().decompress(packed, 8)
    except zlib.error as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from error
    if len(found) < 8:
        raise DataError(f"{path}: truncated: an element without its size")
    return found
