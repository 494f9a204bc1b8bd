"""Which rows: held out in proportion, by turns for probes, or by whole groups."""

from __future__ import annotations

import torch
from torch import Tensor

from biograd import randomness
from biograd.errors import DataError

SPLITS = ("train", "validation", "test")


def by_turns(strata: Tensor | None, rows: int, count: int, seed: int) -> Tensor:
    """Return the rows of a probe set, int64 ``[min(count, rows)]``: all strata alike often.

    The strata take turns, so that the first rows of the index are balanced too; one that has run
    out of rows is passed over.  Without strata the rows are drawn.
    """
    stream = randomness.generator(seed, "class_balanced")
    order = torch.randperm(rows, generator=stream)
    if strata is None:
        return order[: max(count, 0)]
    groups = strata.cpu().unique(return_inverse=True)[1][order]
    turn = torch.empty_like(groups)
    for group, size in enumerate(groups.bincount().tolist()):
        turn[groups == group] = torch.arange(size)
    by_group = torch.argsort(groups, stable=True)
    ranked = by_group[torch.argsort(turn[by_group], stable=True)]
    return order[ranked][: max(count, 0)]


def stratified(strata: Tensor, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide rows into ``(kept, taken)``, with ``count`` taken and every stratum in proportion.

    Each stratum gives the whole part of its share; the rows that are still missing come from those
    with the largest remainders.  Both indices are sorted.
    """
    strata = strata.cpu().unique(return_inverse=True)[1]
    sizes = strata.bincount()
    quota = sizes * count // len(strata)
    remainder = sizes * count % len(strata)
    missing = count - int(quota.sum())
    quota[torch.argsort(remainder, descending=True, stable=True)[:missing]] += 1
    taken = torch.zeros(len(strata), dtype=torch.bool)
    for stratum, wanted in enumerate(quota.tolist()):
        rows = (strata == stratum).nonzero()[:, 0]
        taken[rows[torch.randperm(len(rows), generator=stream)[:wanted]]] = True
    return (~taken).nonzero()[:, 0], taken.nonzero()[:, 0]


def divided(
    rows: int, shares: tuple[float, ...], strata: Tensor | None, groups: Tensor | None, where: str
) -> dict[str, Tensor]:
    """Divide rows by ``shares`` into train, validation and test, the same for every seed.

    Args:
        shares: of the three; 0: that one is absent.
        strata: group number a row, in whose proportion the rows are divided, ``[N]``.
        groups: of rows that stay together (a subject, a session), ``[N]``; they come first.

    Raises:
        DataError: a part that should have rows has none.
    """
    if groups is not None:
        return _by_group(groups, shares, where)
    strata = torch.zeros(rows, dtype=torch.int64) if strata is None else strata
    left, found = torch.arange(rows), {}
    for name, share in zip(SPLITS[:0:-1], shares[:0:-1], strict=True):
        count = round(rows * share / sum(shares))
        if share and not 0 < count < len(left):
            raise DataError(f"{where}: {rows} rows are too few for a {name} split of {share:g}")
        if share:
            stream = randomness.generator(0, "divided", name)
            kept, taken = stratified(strata[left], count, stream)
            found[name], left = left[taken], left[kept]
    return {"train": left, **found}


def _by_group(groups: Tensor, shares: tuple[float, ...], where: str) -> dict[str, Tensor]:
    """Give whole groups, in a drawn order, to the part that lacks most of its rows."""
    numbers, sizes = groups.unique(return_counts=True)
    wanted = {
        name: share * len(groups) / sum(shares) for name, share in zip(SPLITS, shares, strict=True)
    }
    parts = {name: list[int]() for name, due in wanted.items() if due}
    if len(numbers) < len(parts):
        raise DataError(
            f"{where}: {len(numbers)} groups cannot be divided into {len(parts)} splits: give "
            "splits of your own"
        )
    order = torch.randperm(len(numbers), generator=randomness.generator(0, "divided", "groups"))
    for place, number in enumerate(order.tolist()):
        empty = [name for name in parts if not parts[name]]
        only = empty if len(order) - place == len(empty) else list(parts)
        name = max(only, key=lambda each: wanted[each])
        parts[name].append(number)
        wanted[name] -= int(sizes[number])
    return {
        name: torch.isin(groups, numbers[torch.tensor(chosen)]).nonzero()[:, 0]
        for name, chosen in parts.items()
    }
