"""Noise of all parameters: what is drawn for each copy, from a seed that can draw it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from biograd.contracts.precision import computing

Kind = Literal["normal", "rademacher"]
MOST_BYTES = 256 << 20
"""Noise is kept for its second use up to this size; what goes beyond it is drawn again."""


class Factors(NamedTuple):
    """Noise of low rank, ``A B / sqrt(r)``: mean 0, variance 1, uncorrelated elements."""

    left: Tensor
    """``[out, r]``."""
    right: Tensor
    """``[r, in]``, divided by ``sqrt(r)``; ``in`` are all axes of a parameter but the first."""


Draw = Tensor | Factors


def dense(draw: Draw, like: Tensor) -> Tensor:
    """Return noise in the shape of its parameter."""
    return (draw.left @ draw.right).view_as(like) if isinstance(draw, Factors) else draw


def along(parameter: Tensor, draw: Draw, scale: float) -> Tensor:
    """Return ``scale v`` in the shape and precision of a parameter."""
    values = dense(draw, parameter)
    return (values if scale == 1 else scale * values).to(parameter.dtype)


def perturb(parameter: Tensor, value: Tensor, draw: Draw, scale: float) -> None:
    """Set a parameter to ``value + scale v``, the noise ``v`` in its own precision."""
    if parameter.dtype != computing(parameter.dtype) or not parameter.is_contiguous():
        parameter.copy_(value + scale * dense(draw, value))
    elif isinstance(draw, Factors):
        rows, moved = len(draw.left), parameter.view(len(draw.left), -1)
        torch.addmm(value.view(rows, -1), *draw, alpha=scale, out=moved)
    else:
        torch.add(value, draw, alpha=scale, out=parameter)


@dataclasses.dataclass(frozen=True)
class ParameterNoise:
    """Perturbation of all parameters by ``sigma`` times the noise that each seed regenerates.

    Attributes:
        seeds: one for each noisy copy; equal seeds draw equal noise.
        scales: signed size of each copy's noise; an antithetic pair has equal seeds, opposite
            scales.
        kind: standard normal numbers, or signs.
        rank: of the noise of each matrix (EGGROLL, arXiv 2511.16652); 0: independent elements.
    """

    seeds: tuple[int, ...]
    scales: tuple[float, ...]
    kind: Kind = "normal"
    rank: int = 0
    _kept: dict[int, list[Draw]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def draw(self, copy: int, parameters: Sequence[Tensor]) -> list[Draw]:
        """Return the noise of one copy, for each parameter: as it was kept, or drawn again."""
        seed = self.seeds[copy]
        if seed not in self._kept:
            drawn = self._drawn(seed, parameters)
            size = sum(_bytes(draw) for draw in drawn)
            if (len(self._kept) + 1) * size > MOST_BYTES and self._kept:
                self._kept.popitem()  # the last alone gives way: it was a pair's
            self._kept[seed] = drawn
        return self._kept[seed]

    def total(
        self, parameters: Sequence[Tensor], weights: Mapping[int, Sequence[float]]
    ) -> list[Tensor]:
        """Return for each parameter the sum of the noise of copies, each by its weight.

        Args:
            weights: number of a copy to a weight for each parameter.
        """
        totals: list[Tensor | None] = [None] * len(parameters)
        factors: list[list[Factors]] = [[] for _ in parameters]
        for copy, shares in weights.items():
            for place, draw in enumerate(self.draw(copy, parameters)):
                if isinstance(draw, Factors):
                    factors[place].append(Factors(draw.left * shares[place], draw.right))
                    continue
                total = totals[place]
                if total is None:
                    totals[place] = draw * shares[place]
                else:
                    total.add_(draw, alpha=shares[place])
        found = []
        for parameter, total, low in zip(parameters, totals, factors, strict=True):
            if low:  # one product for all copies
                left = torch.cat([one.left for one in low], 1)
                total = (left @ torch.cat([one.right for one in low])).view_as(parameter)
            found.append(torch.zeros_like(parameter) if total is None else total)
        return found

    def forget(self) -> None:
        """Give up what was kept."""
        self._kept.clear()

    def _drawn(self, seed: int, parameters: Sequence[Tensor]) -> list[Draw]:
        stream = torch.Generator(device=parameters[0].device if parameters else "cpu")
        stream.manual_seed(seed)
        numbers = NUMBERS[self.kind]
        drawn: list[Draw] = []
        for parameter in parameters:
            shape, dtype = parameter.shape, computing(parameter.dtype)
            if not self.rank or len(shape) < 2:
                drawn.append(numbers(shape, stream, dtype))
                continue
            left = numbers((shape[0], self.rank), stream, dtype)
            right = numbers((self.rank, shape[1:].numel()), stream, dtype)
            drawn.append(Factors(left, right.mul_(self.rank**-0.5)))
        return drawn


def _bytes(draw: Draw) -> int:
    parts = draw if isinstance(draw, Factors) else (draw,)
    return sum(part.numel() * part.element_size() for part in parts)


def _normal(shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape), generator=stream, device=stream.device, dtype=dtype)


def signs(shape: Sequence[int], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return independent signs, one from each random bit.

    Why a table: eight signs are copied at once, and a value costs a sixth of a normal number.
    """
    device, count = stream.device, torch.Size(shape).numel()
    words = torch.empty(-(-count // 56), dtype=torch.int64, device=device)
    octets = words.random_(generator=stream).view(torch.uint8).view(-1, 8)[:, :7]  # 63 are random
    places = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    table = (places & 1).to(dtype).mul_(2).sub_(1)
    return table[octets.reshape(-1).int()].view(-1)[:count].view(tuple(shape))


NUMBERS: dict[Kind, Callable[[Sequence[int], torch.Generator, torch.dtype], Tensor]] = {
    "normal": _normal,
    "rademacher": signs,
}
