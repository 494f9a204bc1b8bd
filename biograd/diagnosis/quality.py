"""How an estimated gradient compares with a reference, from inner products alone.

Over draws ``g_1 ... g_n`` of the estimate at one state of the network, with ``g`` the reference and
``m`` the mean of the draws::

    cosine          <g_d, g> / |g_d| |g|, mean over the draws
    slope           <m, g> / |g|^2: the share of the gradient that arrives
    variance        sum_d |g_d - m|^2 / (n - 1) / |g|^2
    squared bias    (|m - g|^2 - variance |g|^2 / n) / |g|^2, without bias itself: may be negative

Standard errors: of a mean over draws by their spread, of all else by the jackknife over blocks of
draws.  Everything follows from inner products, so that layers can be pooled by adding them up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCKS = 16
"""Of so many sums of draws the vectors are kept; the jackknife leaves out one at a time."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number and its standard error; NaN where the draws cannot tell it.

    >>> print(Measure(0.1234, 0.02), Measure(959.3, 81.7), Measure(3e-16, 1e-17))
    0.12 ±0.02 959 ±82 0.00
    """

    value: float
    error: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        size = abs(self.value)
        if size >= 10_000:
            return f"{self.value:.1e}"
        digits = 0 if size >= 100 else 1 if size >= 10 else 2
        error = "" if math.isnan(self.error) else f"{self.error:.{digits}f}"
        return f"{self.value:.{digits}f}" + (f" ±{error}" if error.strip("0.") else "")


@dataclasses.dataclass(frozen=True)
class Quality:
    """How an estimate compares with its reference, in some of the network's parameters.

    Attributes:
        parameters: how many there are, and ``compared``, how many of them were looked at.
        gradient: norm of the reference.
        cosine: of one draw.
        cosine_of_mean: of the mean of all draws.
        norm_ratio: norm of one draw by the norm of the reference.
        sign_agreement: share of the entries of one draw with the sign of the reference.
    """

    parameters: int
    compared: int
    gradient: float
    cosine: Measure
    cosine_of_mean: Measure
    norm_ratio: Measure
    sign_agreement: Measure
    slope: Measure
    squared_bias: Measure
    variance: Measure

    def numbers(self) -> dict[str, float]:
        """Return the measures and their errors, and the angle of one draw in degrees."""
        found = {"gradient": self.gradient}
        for name, value in vars(self).items():
            if isinstance(value, Measure):
                found |= {name: value.value, f"{name}_error": value.error}
        cosine = min(max(self.cosine.value, -1.0), 1.0)
        return found | {"angle_deg": math.degrees(math.acos(cosine))}


class Sums:
    """Inner products of draws of an estimate with each other and with the reference.

    Args:
        reference: ``g``, a vector.
        parameters: how many parameters the vector stands for; the rest was not looked at.
        draws: how many will be added.
    """

    def __init__(self, reference: Tensor, parameters: int, draws: int) -> None:
        self.vector = reference.double()
        self.parameters, self.compared = parameters, len(reference)
        self.weight = parameters / max(len(reference), 1)
        self.square = float(self.vector.square().sum())
        self.signed = int((self.vector != 0).sum())
        self.dots: list[float] = []
        self.squares: list[float] = []
        self.agree: list[float] = []
        self._blocks = torch.zeros(min(BLOCKS, draws), len(reference)).to(reference)

    def add(self, draw: Tensor) -> None:
        """Add one draw, a vector."""
        self._blocks[len(self.dots) % len(self._blocks)] += draw
        draw = draw.double()
        same = (draw.sign() == self.vector.sign()) & (self.vector != 0)
        self.dots.append(float(draw @ self.vector))
        self.squares.append(float(draw.square().sum()))
        self.agree.append(float(same.sum()))

    def gram(self) -> Tensor:
        """Return the inner products of the blocks' sums, ``[blocks, blocks]``."""
        blocks = self._blocks.double()
        return (blocks @ blocks.T).cpu()


def cosines(parts: Sequence[Sums]) -> Tensor:
    """Return the cosine of every draw, ``[n]``; 0 where the estimate is zero."""
    dots, squares, _, square = _pooled(parts)
    norms = (squares * square).sqrt()
    return torch.where(norms > 0, dots / norms, 0.0 if square > 0 else math.nan)


def _pooled(parts: Sequence[Sums]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return ``<g_d, g>`` ``[n]``, ``|g_d|^2`` ``[n]``, the blocks' products and ``|g|^2``."""
    dots = torch.stack([p.weight * torch.tensor(p.dots, dtype=torch.float64) for p in parts])
    squares = torch.stack([p.weight * torch.tensor(p.squares, dtype=torch.float64) for p in parts])
    gram = torch.stack([p.weight * p.gram() for p in parts])
    return dots.sum(0), squares.sum(0), gram.sum(0), sum(p.weight * p.square for p in parts)


def quality(parts: Sequence[Sums]) -> Quality:
    """Return how the draws of some layers, taken together, compare with the reference."""
    dots, squares, gram, square = _pooled(parts)
    if square == 0:
        square = math.nan  # nothing to compare with
    agree = torch.stack([p.weight * torch.tensor(p.agree, dtype=torch.float64) for p in parts])
    signed = sum(p.weight * p.signed for p in parts)
    jackknife = _Jackknife(dots, squares, gram, square)
    return Quality(
        parameters=sum(p.parameters for p in parts),
        compared=sum(p.compared for p in parts),
        gradient=0.0 if math.isnan(square) else math.sqrt(square),
        cosine=mean(cosines(parts)),
        norm_ratio=mean((squares / square).sqrt()),
        sign_agreement=mean(agree.sum(0) / (signed or math.nan)),
        slope=mean(dots / square),
        cosine_of_mean=jackknife.measure(_cosine_of_mean),
        squared_bias=jackknife.measure(_squared_bias),
        variance=jackknife.measure(_variance),
    )


def mean(values: Tensor) -> Measure:
    """Return the mean of independent values and its standard error."""
    count = len(values)
    error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
    return Measure(float(values.mean()), error)


@dataclasses.dataclass(frozen=True)
class _Moments:
    """``n`` draws: ``|m|^2``, ``<m, g>``, the mean of ``|g_d|^2``, and ``|g|^2``."""

    count: int
    mean_square: float
    along: float
    square_mean: float
    square: float


def _variance(moments: _Moments) -> float:
    if moments.count < 2:
        return math.nan
    spread = max(moments.square_mean - moments.mean_square, 0.0)
    return spread * moments.count / (moments.count - 1) / moments.square


def _squared_bias(moments: _Moments) -> float:
    distance = moments.mean_square - 2 * moments.along + moments.square
    return distance / moments.square - _variance(moments) / moments.count


def _cosine_of_mean(moments: _Moments) -> float:
    norms = math.sqrt(max(moments.mean_square, 0.0) * moments.square)
    return moments.along / norms if norms > 0 else 0.0 if norms == 0 else math.nan


class _Jackknife:
    """The moments of all draws, and of all but one block of them at a time."""

    def __init__(self, dots: Tensor, squares: Tensor, gram: Tensor, square: float) -> None:
        count, blocks = len(dots), len(gram)
        member = torch.arange(count) % blocks
        self.whole = self._moments(torch.ones(blocks), member, dots, squares, gram, square)
        self.parts = [
            self._moments((torch.arange(blocks) != b).float(), member, dots, squares, gram, square)
            for b in range(blocks)
        ]

    @staticmethod
    def _moments(
        kept: Tensor, member: Tensor, dots: Tensor, squares: Tensor, gram: Tensor, square: float
    ) -> _Moments:
        chosen = kept[member].double()
        count = int(chosen.sum())
        total = float(kept.double() @ gram @ kept.double())
        return _Moments(
            count,
            total / count**2 if count else math.nan,
            float(chosen @ dots) / count if count else math.nan,
            float(chosen @ squares) / count if count else math.nan,
            square,
        )

    def measure(self, statistic: Callable[[_Moments], float]) -> Measure:
        found = torch.tensor([statistic(part) for part in self.parts], dtype=torch.float64)
        blocks = len(found)
        error = math.sqrt((blocks - 1) / blocks * float((found - found.mean()).square().sum()))
        return Measure(statistic(self.whole), error)
