"""Five bytes a spike of a numbered unit, as SLAYER's examples are stored (``.bs1``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from biograd.data.formats.address_events import AddressEvents, content, records


def read(path: Path) -> AddressEvents:
    """Return the spikes of a ``.bs1``: unit of 16 bits, a bit, time of 23 bits, big-endian.

    Raises:
        DataError: the file's length is no multiple of 5.

    Source: S. B. Shrestha and G. Orchard, NeurIPS 31 (2018).
    """
    table = records(content(path), 5, path).astype(np.int64)
    times = (table[:, 2] & 0x7F) << 16 | table[:, 3] << 8 | table[:, 4]
    return AddressEvents(times, (table[:, 0] << 8 | table[:, 1])[:, None])
