"""Cells that are tuned to a direction, drawn when they are asked for."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from biograd.data import Batch, Parts, Request, with_settings
from biograd.data.source import FIXED, Key
from biograd.randomness import generator
from biograd.recipes import Count, NotNegative, Positive


@dataclasses.dataclass(frozen=True)
class Settings:
    rows: Count = 400
    cells: Count = 24
    sharpness: Positive = 2.0
    noise: NotNegative = 0.1


class TunedCells:
    """Cell ``i`` answers an angle with ``exp(k (cos(angle - 2 pi i / n) - 1))`` and noise.

    The angles are those of the source, the noise is new in every epoch.
    """

    timed, steps = False, 1

    def __init__(self, settings: Settings, seed: int, split: str) -> None:
        self.settings, self.split, self.shape = settings, split, (settings.cells,)
        self.digest = f"{settings} {seed} {split}"
        stream = generator(seed, "tuned_cells", split)
        self.targets = 2 * math.pi * torch.rand(settings.rows, generator=stream)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        preferred = 2 * math.pi * torch.arange(self.settings.cells) / self.settings.cells
        apart = self.targets[index, None] - preferred
        rates = torch.exp(self.settings.sharpness * (apart.cos() - 1))
        noise = [self._noise(row, key) for row in index.tolist()]
        return Batch(rates + torch.stack(noise), self.targets[index], index)

    def _noise(self, row: int, key: Key) -> Tensor:
        stream = generator(key[0], self.split, key[1], row)
        return self.settings.noise * torch.randn(self.settings.cells, generator=stream)


@with_settings(Settings)
def read(request: Request, settings: Settings) -> Parts:
    """Return two splits with inputs ``[N, cells]`` and angles ``[N]``."""
    request.without_files()
    splits = ("train", "test")
    return Parts({split: TunedCells(settings, request.seed, split) for split in splits})
