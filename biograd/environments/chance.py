"""Random numbers of an episode: they follow from its seed and the step alone.

Copies of an episode, and the episode in another batch, so meet the same chance; nothing is kept,
so that a run goes on from any step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from biograd.randomness import derive_seed

MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685))
"""Shifts and odd factors of Steele, Lea and Flood's SplitMix64 (2014), as signed numbers."""


def uniform(seed: Tensor, name: str, step: int, count: int) -> Tensor:
    """Return numbers between 0 and 1, ``[B, count]``, in double precision.

    Args:
        seed: of each row's episode, int64 ``[B]``.
        name: what they are for; other names give independent numbers.
        step: of the episode.

    >>> seeds = torch.tensor([3, 4])
    >>> bool((uniform(seeds, "noise", 0, 2)[1:] == uniform(seeds[1:], "noise", 0, 2)).all())
    True
    """
    start = torch.tensor(derive_seed(0, name, step), device=seed.device)
    places = torch.arange(count, device=seed.device)
    state = _mixed(seed)[:, None] ^ start
    return (_mixed(_mixed(state) + _mixed(places + 1)) >> 11 & (2**53 - 1)).double().add(
        0.5
    ) / 2**53


def normal(seed: Tensor, name: str, step: int, count: int) -> Tensor:
    """Return standard normal numbers, ``[B, count]`` (see ``uniform``)."""
    return torch.special.ndtri(uniform(seed, name, step, count))


def whole(seed: Tensor, name: str, step: int, below: int) -> Tensor:
    """Return whole numbers from 0 to ``below - 1``, int64 ``[B]`` (see ``uniform``)."""
    return (uniform(seed, name, step, 1)[:, 0] * below).long().clamp_max(below - 1)


def _mixed(state: Tensor) -> Tensor:
    """Return 64 bits that look independent of ``state``."""
    for shift, factor in MIXERS:
        state = (state ^ (state >> shift & (2 ** (64 - shift) - 1))) * factor
    return state ^ (state >> 31 & (2**33 - 1))
