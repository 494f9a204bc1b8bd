"""What data are: rows by number or a stream of them, drawn lazily, and how batches come of them.

The order of an epoch is drawn from the seed and the epoch alone and no row is read before it is
asked for, so that a run goes on from any step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from biograd.data.digests import combined, sha256_of
from biograd.errors import RecipeError

Key = tuple[int, int]
"""A seed and an epoch: with a row's number all that an example's own randomness depends on."""
FIXED: Key = (0, -1)
"""Of what is drawn once and for all: evaluations, probes, digests."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of a source.

    Attributes:
        inputs: ``[B, *shape]``, or ``[B, T, *shape]`` of a source with a time axis.
        targets: ``[B, ...]``, as the task takes them; NaN, or -100 of a class, is missing.
        index: numbers of the rows, int64 ``[B]``.
        lengths: steps of each trial, int64 ``[B]``; behind them inputs are 0.  None: all ``T``.
        weight: of each example in the loss, ``[B]``; None: 1.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor
    lengths: Tensor | None = None
    weight: Tensor | None = None


class Source(Protocol):
    """Rows by number; nothing is read before it is asked for.

    Attributes:
        shape: of one input, or of one step of it if it has a time axis.
        timed: whether inputs have a time axis, ``[T, *shape]``.
        steps: most steps of a trial; 1 without time.
        digest: SHA-256 of the content; "": it does not repeat.
        targets: of all rows, ``[N, ...]``; None: they cannot be known beforehand.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def timed(self) -> bool: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Tensor | None: ...  # noqa: D102

    def __len__(self) -> int: ...

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return the rows ``index``, int64 ``[B]``, in that order.

        Args:
            key: decides, with a row's number, what is drawn at random in an example.
        """
        ...


class Rows:
    """Some rows of another source, in an order of their own; read when they are asked for."""

    def __init__(self, source: Source, index: Tensor) -> None:
        self.source, self.index = source, index
        self.shape, self.timed, self.steps = source.shape, source.timed, source.steps

    def __len__(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Tensor | None:
        """Targets of these rows."""
        found = self.source.targets
        return None if found is None else found[self.index]

    @property
    def digest(self) -> str:
        """Digest of the whole source and of the numbers of these rows."""
        return combined(self.source.digest, sha256_of(self.index)) if self.source.digest else ""

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return rows by their numbers among these."""
        return dataclasses.replace(self.source.take(self.index[index], key), index=index)

    def many(self, orders: Sequence[Tensor], key: Key) -> Iterator[Batch]:
        """Yield batches as the other source does."""
        for index, batch in zip(
            orders, many(self.source, [self.index[each] for each in orders], key), strict=True
        ):
            yield dataclasses.replace(batch, index=index)


def rows_of(source: Source, index: Tensor) -> Source:
    """Return the rows ``index`` as a source of their own."""
    part = getattr(source, "rows", None)
    return part(index) if part is not None else Rows(source, index)


def original(source: Source, index: Tensor) -> Tensor:
    """Return the numbers that rows have in what their source has read, before any division."""
    inner: Source | None = getattr(source, "source", None)
    if inner is not None:
        return original(inner, source.index[index] if isinstance(source, Rows) else index)
    origin: Tensor | None = getattr(source, "origin", None)
    return index if origin is None else origin[index]


def many(source: Source, orders: Sequence[Tensor], key: Key) -> Iterator[Batch]:
    """Yield a batch for each index in ``orders``; a source may read ahead (``many``)."""
    ahead = getattr(source, "many", None)
    if ahead is not None:
        yield from ahead(orders, key)
        return
    for index in orders:
        yield source.take(index, key)


def is_source(given: Any) -> bool:
    """Return whether ``given`` is a source; no digest is computed for that."""
    known = {*dir(type(given)), *getattr(given, "__dict__", ())}
    return {"take", "digest", "targets", "shape"} <= known


def streams(source: Source) -> bool:
    """Return whether a source is a stream: it has an order of its own and no rows by number."""
    return hasattr(source, "batches")


def batches(
    source: Source,
    batch_size: int,
    generator: torch.Generator | None,
    drop_last: bool = False,
    *,
    skip: int = 0,
    key: Key = FIXED,
) -> Iterator[Batch]:
    """Return an iterator over ``source``, every row at most once.

    The order is drawn from ``generator`` in this very call, not at the first batch, so that a saved
    state of the generator is one from which the whole epoch repeats; without a generator the rows
    come in their own order.

    Args:
        skip: number of batches to pass over, which are not read.
        key: seed and epoch, for what is drawn within the examples.

    Raises:
        RecipeError: the batch size is not positive, or leaves no batch at all.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size = {batch_size}: must be >= 1")
    if streams(source):
        return source.batches(batch_size, key, skip)  # type: ignore[attr-defined]
    count = len(source)
    if drop_last and batch_size > count:
        raise RecipeError(f"batch_size = {batch_size} is more than the {count} rows of the split")
    if generator is None:
        order = torch.arange(count)
    else:
        order = torch.randperm(count, generator=generator, device=generator.device).cpu()
    stop = count - count % batch_size if drop_last else count
    return many(source, order[:stop].split(batch_size)[skip:], key)
