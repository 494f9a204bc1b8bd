"""Units that say nothing: silent ones, and those at the end of their range."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from biograd.substrate.network import LAYERS

SILENT = 1e-3
"""A rate unit is silent if it never exceeds this share of its layer's largest activity."""
END = 0.02
"""An activity is at the end of its range if so near to the layer's largest, or to zero."""


def population(activity: Tensor, layer: nn.Module | None, spiking: bool) -> dict[str, Any]:
    """Return the number of units, and the shares of them that are silent and saturated."""
    rows = _units_last(activity, layer)
    size, units = rows.abs(), rows.shape[-1]
    if spiking and size.dim() > 2:
        size = size.mean(1)  # spikes a step
        off, at_end = size == 0, size >= 0.9
    else:
        largest = float(size.max())
        off = size <= SILENT * largest
        at_end = (size >= (1 - END) * largest) | ((size <= END * largest) & (size > 0))
    silent = off.reshape(-1, units).all(0)
    saturated = ~silent & (at_end.reshape(-1, units).double().mean(0) >= 0.9)
    return {
        "units": units,
        "silent": float(silent.double().mean()),
        "saturated": float(saturated.double().mean()),
    }


def _units_last(activity: Tensor, layer: nn.Module | None) -> Tensor:
    """Return the activity with its units, or the channels of a convolution, on the last axis."""
    if isinstance(layer, LAYERS) and not isinstance(layer, nn.Linear):
        channels = layer.out_channels
        if activity.dim() == 2 and activity.shape[1] % channels == 0:  # flattened behind it
            activity = activity.unflatten(1, (channels, -1))
        if activity.dim() > 2 and activity.shape[1] == channels:
            return activity.movedim(1, -1)
    return activity
