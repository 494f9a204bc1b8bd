"""Cells: the groups of units that have a loss of their own, and how they map to a site's units.

A site's units, and a block's activity, are one of ``(C,)`` channels, ``(P, C)`` patches of
channels, or ``(C, H, W)`` maps, whose positions are the patches.  Groups are runs of ``C / G``
channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from torch import Tensor

AXES: dict[str, tuple[str, ...]] = {
    "block": (),
    "patch": ("patch",),
    "group": ("group",),
    "patch_group": ("patch", "group"),
}
"""What each axis of the cells of a kind counts."""
Kind = Annotated[str, AXES]


@dataclasses.dataclass(frozen=True)
class Cells:
    """A kind of cells; ``groups`` is the number of groups ``G`` of channels."""

    kind: Kind
    groups: int = 1

    def arrange(self, activity: Tensor) -> Tensor:
        """Return ``[rows, P, G, C / G]`` for an activity ``[rows, *units]``.

        Patches whose losses are not told apart are averaged, groups laid side by side.
        """
        values = by_patches(activity)
        if "patch" not in AXES[self.kind]:
            values = values.mean(1, keepdim=True)
        groups = self.groups if "group" in AXES[self.kind] else 1
        return values.unflatten(-1, (groups, -1))

    def pick(self, losses: Tensor) -> Tensor:
        """Return ``[rows, *cells]`` for ``[rows, P, G]``: axes that are not told apart go."""
        axes = AXES[self.kind]
        if "group" not in axes:
            losses = losses[:, :, 0]
        return losses if "patch" in axes else losses[:, 0]

    def spread(self, values: Tensor, units: tuple[int, ...], level: int) -> Tensor:
        """Return for each unit what is credited to it, ``[..., *units]``.

        Args:
            values: of each cell, ``[..., *cells]``.
            units: of the site.
            level: number of leading cell axes whose cells depend on none but their own units;
                over the other axes the values are summed, as all of them depend on the unit.
        """
        axes = AXES[self.kind]
        for _ in axes[level:]:
            values = values.sum(-1)
        if "patch" not in axes[:level]:
            values = values.unsqueeze(-1 - len(axes[:level]))
        if "group" not in axes[:level]:
            values = values.unsqueeze(-1)
        lead, patches, channels = values.shape[:-2], patch_count(units), channel_count(units)
        values = values.repeat_interleave(channels // values.shape[-1], -1)
        values = values.expand(*lead, patches, channels)
        if len(units) < 3:
            return values.reshape(*lead, *units)
        return values.transpose(-1, -2).reshape(*lead, *units)

    def exclusive(self, gradient: Tensor, cells: tuple[int, ...], cell: tuple[int, ...]) -> int:
        """Return to how many leading axes of the cells a site's units keep.

        A site keeps to an axis if the loss of one cell depends on none but the cell's own units
        there.

        Args:
            gradient: of the loss of ``cell`` by the site's units, ``[*units]``.
            cells: shape of the cells.
        """
        units = tuple(gradient.shape)
        one = torch.zeros(cells, device=gradient.device)
        one[cell] = 1
        for level in range(len(cells), 0, -1):
            if self._fits(units, cells[:level]):
                own = self.spread(one, units, level).bool()
                if bool(gradient[own].any()) and not bool(gradient[~own].any()):
                    return level
        return 0

    def _fits(self, units: tuple[int, ...], cells: tuple[int, ...]) -> bool:
        for axis, count in zip(AXES[self.kind], cells, strict=False):
            if axis == "patch" and patch_count(units) != count:
                return False
            if axis == "group" and channel_count(units) % count:
                return False
        return True


def by_patches(activity: Tensor) -> Tensor:
    """Return ``[rows, P, C]`` for an activity ``[rows, *units]``."""
    if activity.dim() == 2:
        return activity.unsqueeze(1)
    return activity if activity.dim() == 3 else activity.flatten(2).transpose(1, 2)


def patch_count(units: tuple[int, ...]) -> int:
    """Return ``P``.

    >>> patch_count((10,)), patch_count((4, 10)), patch_count((10, 2, 3))
    (1, 4, 6)
    """
    return units[0] if len(units) == 2 else math.prod(units[1:])


def channel_count(units: tuple[int, ...]) -> int:
    """Return ``C``.

    >>> channel_count((10,)), channel_count((4, 10)), channel_count((10, 2, 3))
    (10, 10, 10)
    """
    return units[1] if len(units) == 2 else units[0]
