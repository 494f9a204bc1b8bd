"""The recipe of an encoding."""

from __future__ import annotations

import dataclasses

from biograd.checking import Checked, Positive, Table


@dataclasses.dataclass(frozen=True)
class EncodingRecipe(Checked):
    """How a datum becomes a current or a spike train; times in milliseconds."""

    kind: str = "current"
    """A name of ``encoding.ENCODINGS``."""
    dt_ms: Positive = 1.0
    duration_ms: Positive = 20.0
    gain: Positive = 1.0
    """Current per unit of intensity (``current``, ``rows``, ``given``)."""
    max_rate_hz: Positive = 200.0
    time_constant_ms: Positive = 5.0
    """``latency``: the time constant of the input's charging curve."""
    threshold: Positive = 0.1
    """``latency``, ``delta``: the intensity, or change of it, that counts."""
    settings: Table = dataclasses.field(default_factory=dict)
    """Of an encoding that has keys of its own."""
