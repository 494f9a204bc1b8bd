"""How a number of a comparison is written, on the console and in the report alike."""

from __future__ import annotations

from typing import Any

from biograd.errors import visible
from biograd.metrics import is_share

COSTLY = {
    "training_seconds": "seconds of training",
    "peak_memory_bytes": "memory",
    "forward_passes": "forward passes",
    "multiply_accumulates": "multiply-accumulates",
    "synaptic_operations": "synaptic operations",
}
"""What a training took: key to heading."""


def write_cell(key: str, value: Any, fine: bool = False) -> str:
    """Return a cell of a table as text; the key says what its number is.

    Args:
        fine: results are no per cents: three decimals.

    >>> write_cell("p_holm", 0.0004), write_cell("difference", 1.234), write_cell("n", 3)
    ('< .001', '+1.23', '3')
    >>> write_cell("interval", (96.1, 97.8)), write_cell("synaptic_operations", 12345.6)
    ('96.1–97.8', '12.3 k')
    """
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        signed = key.startswith("difference")
        digits = 3 if fine else 1
        low, high = (_signed(p, digits) if signed else f"{p:.{digits}f}" for p in value)
        return f"{low} to {high}" if signed else f"{low}–{high}"
    if isinstance(value, str):
        return visible(value)
    if key in ("cell", "seed", "n", "cells", "epochs", "pairs", "trials"):
        return str(value)
    if key.startswith("p_") or key == "p":
        return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"
    if key.startswith("difference") or key == "effect":
        return _signed(value, 3 if fine else 2)
    if key == "peak_memory_bytes":
        return f"{value / 1e6:.0f} MB"
    if key in ("multiply_accumulates", "synaptic_operations", "forward_passes"):
        return _large(value)
    if key.startswith(("test_", "train_", "held_out_")) and is_share(key.rpartition("_")[2]):
        return f"{100 * value:.1f}"
    if key.endswith("seconds"):
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    if fine:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return f"{value:.2f}" if abs(value) >= 0.005 or value == 0 else f"{value:.2e}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no minus before zero


def _large(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"
