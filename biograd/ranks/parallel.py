"""One training by several ranks: every batch is divided among them, or the copies of it are.

*Examples.*  Each rank takes a run of a batch's rows, all see the same order of the data and build
the same network.  Random numbers with a batch axis are drawn for the whole batch on every rank,
from the same stream, and the own rows are taken (``rows``), so that an example's noise does not
depend on the number of ranks.  With ``b_r`` of ``B`` rows on rank ``r``, ::

    g = sum over r of (b_r / B) g_r

is the gradient of one process with the whole batch.  Whatever else depends on a batch as a whole
is summed or collected over the ranks (``total``, ``average``, ``gather``).

*Copies.*  A rule that perturbs the parameters and needs no more than each copy's mean loss
divides the copies: every rank runs its own on the whole batch, the mean losses are exchanged
(``exchange``), and each rank makes the same gradient of them, from seeds that all know.  No
gradient travels.

Everything here acts while a share is open (``sharing``) and does nothing in a process alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from biograd import ranks

if TYPE_CHECKING:
    from torch import Tensor, nn

Division = Literal["examples", "copies", ""]
"""What of a step is divided among ranks; "": nothing, it must be done by one process."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of a batch that one rank computes.

    A rank for which there is none computes the last row once more, with weight 0, so that all
    ranks do the same work in the same order.

    Attributes:
        start: first row.
        stop: the row behind the last.
        counts: number of rows of each rank.
        rank: whose share it is.
        division: "copies": the share is the whole batch, and copies are divided.
    """

    start: int
    stop: int
    counts: tuple[int, ...]
    rank: int = 0
    division: Division = "examples"

    @classmethod
    def of(cls, total: int, rank: int, size: int, division: Division = "examples") -> Share:
        """Return the share of a rank of a batch of ``total`` rows.

        >>> [Share.of(5, rank, 3).rows for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        >>> Share.of(1, 1, 2).rows, Share.of(1, 1, 2).weight
        (slice(0, 1, None), 0.0)
        """
        if division == "copies":
            return cls(0, total, (total,) * size, rank, division)
        counts = tuple(total // size + (number < total % size) for number in range(size))
        start = min(sum(counts[:rank]), total - 1)
        return cls(start, start + max(counts[rank], 1), counts, rank, division)

    @property
    def rows(self) -> slice:
        """The rows of the batch that are computed here."""
        return slice(self.start, self.stop)

    @property
    def total(self) -> int:
        """The number of rows of the whole batch."""
        return self.stop if self.division == "copies" else sum(self.counts)

    @property
    def weight(self) -> float:
        """What the share's mean weighs in that of the whole batch."""
        return self.counts[self.rank] / sum(self.counts)

    @property
    def divided(self) -> bool:
        """Whether other ranks compute other rows."""
        return self.division == "examples" and len(self.counts) > 1


_share: Share | None = None


def share(total: int, division: Division = "examples") -> Share:
    """Return this rank's share of a batch of ``total`` rows."""
    return Share.of(total, ranks.rank(), ranks.size(), division)


@contextlib.contextmanager
def sharing(own: Share) -> Iterator[Share]:
    """Compute a share of a batch while the context is open."""
    global _share
    before, _share = _share, own
    try:
        yield own
    finally:
        _share = before


def _divided() -> Share | None:
    return _share if _share is not None and _share.divided else None


def _exchanging() -> Share | None:
    return _divided() if ranks.size() > 1 else None


def rows(draw: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
    """Return the own rows of what is drawn for a whole batch.

    Args:
        draw: draws so many rows.
        count: number of own rows; a multiple where each example has several, side by side.
        axis: of the rows.
    """
    own = _divided()
    if own is None:
        return draw(count)
    times, rest = divmod(count, own.stop - own.start)
    if rest:  # nothing that has a row for each example: the same on all ranks
        return draw(count)
    return draw(times * own.total).narrow(axis, times * own.start, count)


def total(values: Tensor) -> Tensor:
    """Return a sum over the own rows, summed over all ranks."""
    own = _exchanging()
    if own is None:
        return values
    return ranks.add(values.detach().clone() if own.weight else values.new_zeros(values.shape))


def weight() -> float:
    """Return what a mean over the own rows weighs in that over all rows of the batch."""
    own = _exchanging()
    return 1.0 if own is None else own.weight


def average(values: Tensor) -> Tensor:
    """Return a mean over the own rows, averaged over all rows of the batch."""
    return values if _exchanging() is None else total(values * weight())


def gather(values: Tensor) -> Tensor:
    """Return the rows ``[rows, ...]`` of all ranks, in the order of the batch, without a graph."""
    own = _exchanging()
    if own is None:
        return values
    import torch

    values = values.detach()
    times = len(values) // (own.stop - own.start)
    padded = values.new_zeros(times * max(own.counts), *values.shape[1:])
    padded[: len(values)] = values
    parts = zip(ranks.collect(padded), own.counts, strict=False)
    return torch.cat([part[: times * count] for part, count in parts])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every ``.grad`` by that of the whole batch; all that travels is one buffer a type."""
    own = _exchanging()
    if own is None:
        return
    groups: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in groups.values():
        _average(group, own.weight)


def _average(group: list[nn.Parameter], weight: float) -> None:
    """Average the gradients of parameters of one type.

    A parameter without a gradient on any rank stays without: an optimiser does not move it then.
    """
    import torch

    like = group[0]
    there = torch.tensor([float(p.grad is not None) for p in group]).to(like)
    flat = [torch.zeros_like(p) if p.grad is None else weight * p.grad for p in group]
    buffer = ranks.add(torch.cat([there, *(values.flatten() for values in flat)]))
    found = buffer[len(group) :].split([parameter.numel() for parameter in group])
    for parameter, known, values in zip(group, buffer[: len(group)].tolist(), found, strict=True):
        parameter.grad = values.view_as(parameter) if known else None


def dealt(count: int) -> slice | None:
    """Return which of ``count`` copies this rank runs; None: all."""
    if _share is None or _share.division != "copies" or len(_share.counts) == 1:
        return None
    each, more = divmod(count, len(_share.counts))
    start = _share.rank * each + min(_share.rank, more)
    return slice(start, start + each + (_share.rank < more))


def exchange(own: slice, count: int, values: Tensor) -> Tensor:
    """Return a row of numbers for each of ``count`` copies, of which this rank has its own.

    Args:
        own: which copies ``values`` ``[own copies, ...]`` belong to.
        count: of all copies.
        values: travel as they are; all ranks get the same bits.
    """
    whole = values.new_zeros(count, *values.shape[1:])
    whole[own] = values
    return ranks.add(whole)
