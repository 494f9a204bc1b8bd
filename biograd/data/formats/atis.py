"""Five bytes an event, as the ATIS camera of N-MNIST and N-Caltech101 was stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from biograd.data.formats.address_events import AddressEvents, camera, content, records

MARKER, WRAP_US = 240, 1 << 13
"""An event of row 240 is none: it adds 8192 us to all times behind it."""


def read(path: Path) -> AddressEvents:
    """Return the events of a ``.bin``: x, y, a bit of polarity and 23 bits of time, big-endian.

    Raises:
        DataError: the file's length is no multiple of 5.

    Source: G. Orchard et al., Frontiers in Neuroscience 9:437 (2015).
    """
    table = records(content(path), 5, path).astype(np.int64)
    times = (table[:, 2] & 0x7F) << 16 | table[:, 3] << 8 | table[:, 4]
    marker = table[:, 1] == MARKER
    times += np.cumsum(marker) * WRAP_US
    kept, polarity = ~marker, table[:, 2] >> 7
    return camera(times[kept], table[kept, 0], table[kept, 1], polarity[kept])
