"""The figures that a run keeps: sums of an epoch, activity, when to look."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biograd import tasks
from biograd.tasks import added
from biograd.training import StepRecord

MANY = 0.5
"""Share of a layer's units that must be silent to be worth a word."""


def silent(found: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the share of silent units of each layer where it is large."""
    shares = {name: float(_silent_units(value).float().mean()) for name, value in found.items()}
    return {name: share for name, share in shares.items() if share > MANY}


def _silent_units(values: torch.Tensor) -> torch.Tensor:
    """Return for each unit whether it is silent: inactive for every probe, ``[units]``."""
    return (values == 0).flatten(0, -2).all(0)


def firing(found: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the share of silent units, and spikes per neuron and trial where there are spikes.

    Args:
        found: by layer ``[B, steps, units]`` of spikes, or ``[B, units]``.
    """
    if not found:
        return {}
    units = torch.cat([_silent_units(value) for value in found.values()])
    values = {"silent_fraction": float(units.float().mean())}
    spikes = [value for value in found.values() if value.dim() == 3]
    if spikes:
        counts = torch.cat([value.sum(1).mean(0) for value in spikes])
        values["spikes_per_neuron"] = float(counts.mean())
    return values


@dataclasses.dataclass(frozen=True)
class EpochSums:
    """What the steps of an epoch have found so far, together."""

    loss: float = 0.0
    steps: int = 0
    totals: tasks.Totals = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, kept: Mapping[str, Any] | list[float], batch: int) -> EpochSums:
        """Return what a checkpoint kept; one of before other tasks has loss, accuracy and steps."""
        if isinstance(kept, Mapping):
            return cls(**kept)
        loss, accuracy, steps = kept
        totals = {"accuracy": [[batch * accuracy], [batch * steps]]} if steps else {}
        return cls(loss, int(steps), totals)

    def and_of(self, record: StepRecord) -> EpochSums:
        """Return the sums with another step."""
        return EpochSums(self.loss + record.loss, self.steps + 1, added(self.totals, record.totals))


def prefixed(split: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures under the names of a split, ``test_accuracy``."""
    return {f"{split}_{name}": value for name, value in figures.items()}


def parameter_measures(
    network: nn.Module, before: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Return what a snapshot says of each parameter, and take its value into ``before``."""
    found = {}
    for name, value in network.named_parameters():
        now = value.detach().cpu().clone()
        found[name] = {
            "norm": float(now.norm()),
            "update_norm": float((now - before.get(name, now)).norm()),
            "sparsity": float((now == 0).float().mean()),
        }
        before[name] = now
    return found


def ends_with_snapshot(epoch: int) -> bool:
    """Return whether activity is kept at the end of an epoch: the first 20, then 50, 100, 200, ...

    It does not ask how many epochs there will be, so that more of them never keep fewer snapshots.

    >>> [epoch for epoch in range(1, 101) if ends_with_snapshot(epoch)][-3:]
    [20, 50, 100]
    """
    return epoch <= 20 or epoch in log_spaced(epoch)


def log_spaced(limit: int) -> set[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to ``limit``.

    >>> sorted(log_spaced(30))
    [1, 2, 5, 10, 20]
    """
    found, scale = set(), 1
    while scale <= limit:
        found |= {scale * factor for factor in (1, 2, 5) if scale * factor <= limit}
        scale *= 10
    return found
