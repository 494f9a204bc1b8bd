"""Prophesee's DAT files, version 2, as N-Cars has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from biograd.data.formats.address_events import AddressEvents, camera, content, records
from biograd.errors import DataError

KINDS = (0, 12)
"""Event types that are changes of brightness: Event2d, EventCD; 14 is an external trigger."""
SIZE = 8


def read(path: Path) -> AddressEvents:
    """Return the events of a ``.dat``: lines that begin with ``%``, type, size, then 8 bytes each.

    A record is an unsigned time, then x in bits 0-13, y in 14-27, polarity in 28, little-endian.

    Raises:
        DataError: no header, another type of events, or a record that is not complete.
    """
    data, start = content(path), 0
    while data[start : start + 1] == b"%":
        end = data.find(b"\n", start)
        if end < 0:
            raise DataError(f"{path}: truncated: a line of the header does not end")
        start = end + 1
    if not start:
        raise DataError(f"{path}: no DAT file: its header begins with %")
    if len(data) < start + 2:
        raise DataError(f"{path}: truncated: no type and size of events behind the header")
    kind, size = data[start], data[start + 1]
    if kind not in KINDS or size != SIZE:
        raise DataError(f"{path}: events of type {kind}, {size} bytes: must be type 0 or 12, of 8")
    words = records(data[start + 2 :], SIZE, path).view("<u4").astype(np.int64)
    return camera(
        words[:, 0], words[:, 1] & 0x3FFF, words[:, 1] >> 14 & 0x3FFF, words[:, 1] >> 28 & 1
    )
