"""What drives a population: currents in their units, without what the refractory do not receive."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from biograd.brian.neuron_model import NeuronModel
from biograd.contracts.credit_paths import mapped
from biograd.errors import CapabilityError
from biograd.translation.linearisation import Record


def check_shapes(
    model: NeuronModel, currents: Mapping[str, Tensor], units: int, steps: int
) -> None:
    """Refuse currents that are not ``[rows, steps or 1, units]``.

    Raises:
        CapabilityError: the port, and both shapes.
    """
    for port, values in currents.items():
        fits = values.dim() == 3 and values.shape[1] in (1, steps)
        if not fits or values.shape[2] != units:
            raise CapabilityError(
                f"{model.where}: the current of {port} is [rows, units] or [rows, steps, units] "
                f"with {units} units and {steps} steps, not {list(values.shape)}"
            )


def in_units(model: NeuronModel, currents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return currents in SI units, along both of their ways."""
    return {port: _scaled(values, model.scales[port]) for port, values in currents.items()}


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else mapped(lambda part: scale * part, values)


def admitted(model: NeuronModel, drives: Mapping[str, Tensor], record: Record) -> dict[str, Tensor]:
    """Return the currents without the impulses that refractory neurons did not receive."""
    if not model.guarded or record.ready is None:
        return dict(drives)
    ready = torch.ones_like(record.spikes)
    ready[1:] = (record.ready[:-1] & (record.spikes[:-1] == 0)).to(ready)
    reached = ready.transpose(0, 1)
    return {name: v * reached if name in model.guarded else v for name, v in drives.items()}
